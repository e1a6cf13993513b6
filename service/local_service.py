"""A service of one's own for a while: `fallline serve` as a child process, on free ports and a home that is its alone.

What the demo, the benchmarks and the system tests start. However the block ends, nothing is left running.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from service.client import FallLine, FallLineError
from service.errors import ServiceError

START_S, END_S, READY_S = 60.0, 30.0, 180.0
_LOOK_S = 0.05
PR_SET_PDEATHSIG = 1


def _end_with_owner() -> None:
    """In the new process: SIGTERM when the thread that started it is gone, by `kill -9` too (Linux, `man 2 prctl`)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class NotStarted(ServiceError):
    """The service did not come up; `reason` holds what its output ends with."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the service did not come up:\n{self.reason}"


class LocalService:
    """`fallline serve` in `home` (None: a temporary one, removed at the end). A context manager."""

    def __init__(self, home: Path | None = None, environ: Mapping[str, str] | None = None) -> None:
        self._temporary = home is None
        self.home = Path(tempfile.mkdtemp(prefix="fallline-home-")) if home is None else home
        ports = {"FALLLINE_PORT": "0", "FALLLINE_MLFLOW_PORT": "0"}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FALLLINE_")}
        self._environ = {**inherited, **ports, "FALLLINE_HOME": str(self.home), **(environ or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._clear()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()

    def start(self) -> None:
        """Start it; returns when the API answers. NotStarted when it does not."""
        self.home.mkdir(parents=True, exist_ok=True)
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "serve"],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C is its owner's, who ends it in order
                preexec_fn=_end_with_owner,
            )
        self._wait(START_S, lambda: self._answers(ready=False))

    def wait_until_ready(self) -> None:
        """Returns when every part is up."""
        self._wait(READY_S, lambda: self._answers(ready=True))

    def send(self, number: int) -> None:
        """Send the supervisor a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def end(self, number: int = signal.SIGINT) -> int:
        """Ask it to end, and wait: its exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end; after END_S it is killed, and what it started ends with it."""
        assert self._process is not None
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    @property
    def output(self) -> Path:
        """The file of what `fallline serve` prints."""
        return self.home / "serve.out"

    @property
    def database(self) -> Path:
        """The store's file."""
        return self.home / "fallline.db"

    @property
    def endpoints(self) -> dict[str, Any]:
        """Where its parts listen, and their pids."""
        found: dict[str, Any] = json.loads((self.home / "run" / "endpoints.json").read_text())
        return found

    @property
    def url(self) -> str:
        """The API's address."""
        return str(self.endpoints["api"])

    def _answers(self, ready: bool) -> bool:
        try:
            with FallLine(self.url, timeout_s=5.0) as client:
                health = client.health()
        except (FallLineError, OSError, ValueError, KeyError):
            return False  # not there yet: asked again until the time is over
        return bool(health["ready"]) or not ready

    def _wait(self, seconds: float, done: Any) -> None:
        assert self._process is not None
        until = time.monotonic() + seconds
        while not done():
            if self._process.poll() is not None or time.monotonic() > until:
                raise NotStarted("\n".join(self.output.read_text(errors="replace").splitlines()[-20:]))
            time.sleep(_LOOK_S)

    def _clear(self) -> None:
        if self._process is not None:
            self.end()
        if self._temporary:
            shutil.rmtree(self.home, ignore_errors=True)
