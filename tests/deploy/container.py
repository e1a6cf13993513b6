"""One container of the composition as a process, under a launcher that leaves nothing of it behind."""

import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from service.child import Child
from service.embedded import Command

from ..system.conftest import processes_below

HEALTHY_S = 120.0


@dataclass
class Container:
    """One service's process, in the place of a container."""

    name: str
    command: list[str]
    health: list[str]
    environment: dict[str, str]
    folder: Path
    child: Child | None = field(default=None, init=False)

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def start(self) -> None:
        """Start it; returns at once. It ends with this process, and all it started with it."""
        arguments = [str(shutil.which(self.command[0], path=self.environment["PATH"])), *self.command[1:]]
        self.child = Child(Command(arguments, self.environment, self.folder), self.log, grace=5.0)

    def is_running(self) -> bool:
        """Whether it has been started and has not ended since."""
        return self.child is not None and self.child.poll() is None

    def is_healthy(self) -> bool:
        """Whether its health check says so, in time."""
        try:
            found = subprocess.run(self.health, env=self.environment, cwd=self.folder, capture_output=True, timeout=30)
        except subprocess.TimeoutExpired:
            return False
        return found.returncode == 0

    def wait_until_healthy(self) -> None:
        """Returns when it is; fails after HEALTHY_S."""
        until = time.monotonic() + HEALTHY_S
        while not self.is_healthy():
            assert time.monotonic() < until, f"{self.name} is not healthy:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.2)  # as an engine asks, again and again

    def main(self) -> int | None:
        """The pid of the first of its processes, with which all of them end; None: it has ended."""
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.child.pid).children() if self.child is not None else []
            return min(children, key=psutil.Process.create_time).pid if children else None
        return None

    def processes(self, title: str) -> list[int]:
        """The pids of its processes whose command line contains `title`."""
        assert self.child is not None
        return processes_below(self.child.pid, title)

    def family(self) -> list[psutil.Process]:
        """All its processes; none of one that has ended."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.child.pid).children(recursive=True) if self.child is not None else []
        return []

    def kill(self) -> None:
        """All of it at once, as by a machine's loss; returns when nothing of it is left."""
        assert self.child is not None
        child = self.child  # another one may be there soon
        child.kill()
        child.wait(30)
