"""docs/cluster.md, from a laptop to a cluster: its shell blocks as they stand there, a head and one more node here.

Both blocks are run, `ray status`, and the Ctrl-C that ends a node. One machine cannot show that the others find
FIRST_MACHINE by its name and get through to its ports. Not run here: the settings within sentences (a shared home,
health checks, the ways of gradients), which test_cluster.py, test_nodes.py and tests/faults try, and the block of the
second part, on machines of different kinds, which test_kernels.py does.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from service import launcher
from service.child import Child
from service.client import FallLine, FallLineError
from service.embedded import Command
from service.ports import free_port, held, listens

pytestmark = pytest.mark.system

GUIDE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text().split("\n## ")[0]
# In the place of machines' names: Ray takes 127.0.0.1 for a machine that is alone, and replaces it.
ADDRESSES = {"first": "127.0.0.2", "other": "127.0.0.3"}
# What two nodes on one machine would quarrel about: ports, and 30 % of its memory each.
BESIDE = "--min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0 --object-store-memory=134217728"
WITHIN_S = 180.0


def lines() -> dict[str, str]:
    """What the guide has its reader type, by terminal: one on each machine, and one for the service."""
    nodes, service = re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)
    everywhere, first, other = re.split(r"^# on (?:the first machine|each other machine)\n", nodes, flags=re.MULTILINE)
    (once,) = (line for line in everywhere.splitlines() if line.endswith("# once"))
    again = everywhere.replace(once, "")
    (home,) = (line for line in first.splitlines() if line.startswith("export FALLLINE_HOME="))
    (status,) = re.findall(r"`(\.venv/bin/ray status [^`]*)`", GUIDE)
    return {
        "first": everywhere + first,
        "other": again + other,
        "service": f"{again}{home}\n{service}",
        "status": again + status,
    }


class Desk:
    """The terminals, on a home of the reader's own. A context manager, which ends what runs in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.terminals: dict[str, Child] = {}
        self._port, self._held = free_port(ADDRESSES["first"]), ExitStack()
        self._held.enter_context(held(ADDRESSES["first"], self._port))
        self._temporary = Path(tempfile.mkdtemp(prefix="fallline-", dir="/tmp"))  # sockets: paths end near 107 bytes

    def __enter__(self) -> "Desk":
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.terminals.values():
            child.kill()
        for child in self.terminals.values():
            child.wait(30)
        self._held.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def type(self, name: str) -> None:
        """Type the lines into a terminal that stays open behind them, Ctrl-C or not."""
        command = ["/bin/bash", "-c", f"trap : INT\n{self._script(name)}\nsleep infinity"]
        self.terminals[name] = Child(Command(command, self._environment(name), self.folder), self.log(name), 0.0)

    def answer(self, name: str) -> str:
        """What lines say that come to an end."""
        command = ["/bin/bash", "-c", self._script(name)]
        done = subprocess.run(command, env=self._environment(name), capture_output=True, text=True, timeout=WITHIN_S)
        return done.stdout + done.stderr

    def ctrl_c(self, name: str) -> None:
        """To all that runs in the terminal's foreground."""
        os.killpg(self.terminals[name].pid, signal.SIGINT)

    def programs(self, name: str) -> list[str]:
        """What runs in a terminal, beside its shell."""
        found = []
        for pid in launcher.descendants(self.terminals[name].pid):
            try:
                found.append(Path(f"/proc/{pid}/comm").read_text().strip())
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
        return sorted(set(found) - {"bash"})

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def wait_for(self, condition: Callable[[], Any], what: str) -> None:
        until = time.monotonic() + WITHIN_S
        while not condition():
            said = {name: self.log(name).read_text()[-2000:] for name in self.terminals}
            assert time.monotonic() < until, f"not within {WITHIN_S:g} s: {what}\n{said}"
            time.sleep(0.2)  # polls a condition

    def head_listens(self) -> bool:
        return listens(ADDRESSES["first"], self._port)

    def _script(self, name: str) -> str:
        """The lines, changed only where two nodes are on one machine, or the virtual environment is elsewhere."""
        text = lines()[name].replace(".venv/bin/", f"{Path(sys.executable).parent}/")
        text = text.replace("FIRST_MACHINE:6379", f"{ADDRESSES['first']}:{self._port}")
        text = text.replace("--port=6379", f"--port={self._port} --dashboard-port={free_port()}")
        return text.replace("ray start", f"ray start --node-ip-address={ADDRESSES.get(name)} {BESIDE}")

    def _environment(self, name: str) -> dict[str, str]:
        """Of a terminal in which nothing of ours is set yet, but free ports, and that a job is to be on both nodes."""
        scratch = self._temporary / name
        scratch.mkdir(exist_ok=True)
        found = {n: value for n, value in os.environ.items() if not n.startswith(("FALLLINE_", "RAY_"))}
        found |= {"HOME": str(self.folder), "TMPDIR": str(scratch), "RAY_TMPDIR": str(scratch)}
        if name == "service":
            found |= {"FALLLINE_PORT": "0", "FALLLINE_MLFLOW_PORT": "0", "FALLLINE_PLACEMENT": "spread"}
        return found


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with Desk(tmp_path) as found:
        yield found


def ready(home: Path) -> bool:
    """Whether every part of the service is up."""
    try:
        with FallLine(json.loads((home / "run" / "endpoints.json").read_text())["api"]) as client:
            return bool(client.health()["ready"])
    except (OSError, ValueError, FallLineError):
        return False  # not there yet


SPEC = {
    "dataset": "points",
    "target": "kind",
    "network": {"hidden": [8]},
    "distribution": {"workers": 2, "shards": 4},
    "model": None,
}
ENDLESS = SPEC | {"training": {"epochs": 10_000, "early_stopping": None}}


def fetched(home: Path) -> list[Path]:
    """The prepared arrays that a node has got from another one."""
    return list((home / "fetched").glob("?" * 64))


def workers(job: dict[str, Any]) -> int:
    """How many train it at the moment."""
    return int((job["progress"] or {}).get("workers", 0))


def test_the_guide_leads_to_a_job_on_two_nodes(desk: Desk, table: Path) -> None:
    desk.type("first")
    desk.wait_for(desk.head_listens, "the head listens")
    desk.type("other")
    desk.wait_for(lambda: "/8.0 worker_slots" in desk.answer("status"), "both nodes have joined")
    assert (desk.folder / ".fallline-token").stat().st_mode & 0o077 == 0

    desk.type("service")
    home = desk.folder / ".fallline"
    desk.wait_for(lambda: ready(home), "the service is ready")
    with FallLine(json.loads((home / "run" / "endpoints.json").read_text())["api"]) as client:
        client.datasets.upload(table, name="points")
        endless = client.jobs.submit(ENDLESS)["id"]
        desk.wait_for(lambda: fetched(desk.folder / ".fallline-node"), "a worker is on the other node")
        desk.wait_for(lambda: workers(client.jobs.show(endless)) == 2, "and one on the first")
        client.jobs.cancel(endless)
        job = client.jobs.wait(client.jobs.submit(SPEC)["id"], timeout_s=WITHIN_S)
        assert job["status"] == "succeeded", job

    for name in ("service", "other"):
        assert desk.programs(name)
        desk.ctrl_c(name)
        desk.wait_for(lambda name=name: desk.programs(name) == ["sleep"], f"nothing is left in the terminal {name}")
