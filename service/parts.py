"""Which parts of the service are up: two small files below `home/run/`, written atomically, readable at any time.

- `status.json`, by the controller, every few seconds: {"parts": {name: {"state", "since", "detail"}}} for `controller`,
  `ray` and `mlflow`. Its time of change is the sign of life, which a full disk takes too: an old one means that the
  controller itself is not there, and then nobody knows of the other two.
- `endpoints.json`, by the supervisor: where the API and MLflow listen, and the pids. It exists while the service runs.
"""

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from service import disk

PARTS = ("controller", "ray", "mlflow")
STALE_SECONDS = 10.0
# The controller's exit codes: Ray is gone; another controller works; the store takes nothing at the start.
RAY_LOST, LEAD_LOST, STORE_FULL = 75, 76, 77


@dataclass(frozen=True)
class Part:
    """`state`: starting, up or down; `since`: Unix seconds; `detail` says why it is not up."""

    state: str
    since: float
    detail: str = ""


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """Readers see the old content or the new one. Not synced to disk: it tells of processes, which a crash ends."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        partial.write_text(json.dumps(content))
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def run_folder(home: Path) -> Path:
    """The folder of what tells of the running service."""
    return home / "run"


def write_parts(home: Path, parts: dict[str, Part], now: float) -> None:
    """Says that the controller was alive at `now`, and how the parts are doing."""
    path = run_folder(home) / "status.json"
    try:
        write_atomically(path, {"parts": {name: asdict(part) for name, part in parts.items()}})
    except OSError as error:
        if not disk.is_full(error) or not path.exists():
            raise
    os.utime(path, (now, now))


def last_sign(home: Path) -> float | None:
    """When the controller was last seen alive; None: never since the service was started."""
    try:
        return (run_folder(home) / "status.json").stat().st_mtime
    except FileNotFoundError:
        return None


def read_parts(home: Path, now: float) -> dict[str, Part]:
    """Every part of `PARTS`; those that nothing recent is known of are down."""
    checked_at = last_sign(home)
    if checked_at is None:
        return {name: Part("starting", now, "the controller has not started yet") for name in PARTS}
    if now - checked_at > STALE_SECONDS:
        return {name: Part("down", checked_at, "no sign of life from the controller") for name in PARTS}
    told = json.loads((run_folder(home) / "status.json").read_text())["parts"]
    unknown = {"state": "starting", "since": checked_at, "detail": "not reported yet"}
    return {name: Part(**told.get(name, unknown)) for name in PARTS}
