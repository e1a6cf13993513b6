"""A whole service for tests: `fallline serve` on free ports in a folder of its own, and its processes at hand."""

import csv
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from service import launcher
from service.client import FINAL_STATUSES, FallLine, FallLineError, Unreachable
from service.local_service import LocalService

Job = dict[str, Any]


def processes_below(ancestor: int, title: str) -> list[int]:
    """The pids of all descendants of `ancestor` whose command line contains `title`."""
    found = []
    for pid in launcher.descendants(ancestor):
        try:
            if title in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"):
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    return found


class Service:
    """A running service, a client of it, and its processes. `local` may be what tests/deploy has in its place, too."""

    def __init__(self, local: LocalService) -> None:
        self.local = local
        self.client = FallLine(local.url)

    @staticmethod
    def step(job: Job) -> int:
        """How many steps are committed."""
        return int((job["progress"] or {}).get("step", 0))

    @staticmethod
    def ended(job: Job) -> bool:
        """Nothing happens to the job any more."""
        return job["status"] in FINAL_STATUSES

    @staticmethod
    def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> float:
        """Polls until `condition` is true; the seconds it took."""
        begun = time.monotonic()
        while not condition():
            assert time.monotonic() - begun < seconds, f"not within {seconds:g} s: {what}"
            time.sleep(0.02)
        return time.monotonic() - begun

    def is_ready(self) -> bool:
        """The API answers that every part is up."""
        with suppress(Unreachable):
            return bool(self.client.health()["ready"])
        return False

    @property
    def supervisor(self) -> int:
        return int(self.local.endpoints["pids"]["supervisor"])

    def processes(self, title: str = "") -> list[int]:
        """The pids of all processes whose command line contains `title`."""
        return processes_below(self.supervisor, title)

    def pid(self, part: str) -> int:
        """Of the part's own process, as soon as there is one: it may just have been started again."""
        self.wait_for(lambda: launcher.parent_of(self.local.endpoints["pids"].get(part, 0)), 60, f"the {part}")
        return int(self.local.endpoints["pids"][part])

    def environment(self, part: str) -> dict[str, str]:
        """A part's own, for what is to join it."""
        pairs = Path(f"/proc/{self.pid(part)}/environ").read_bytes().decode().split("\0")
        return dict(pair.split("=", 1) for pair in pairs if "=" in pair)

    def kill(self, part: str) -> None:
        """SIGKILL to a part's own process, not to its launcher."""
        os.kill(self.pid(part), signal.SIGKILL)

    def kill_all(self, title: str) -> None:
        """SIGKILL to all processes whose command line contains `title`."""
        for pid in self.processes(title):
            with suppress(ProcessLookupError):  # Ray has just ended it: it was not needed any more
                os.kill(pid, signal.SIGKILL)

    @contextmanager
    def stopped(self, part: str) -> Iterator[None]:
        """The part hangs, with all below it."""
        pid = self.pid(part)
        family = [pid, *launcher.descendants(pid)]
        for member in family:
            os.kill(member, signal.SIGSTOP)
        try:
            yield
        finally:
            for member in family:
                os.kill(member, signal.SIGCONT)

    def stop_between_transactions(self, pid: int) -> None:
        """SIGSTOP at a moment when the process does not hold SQLite's lock, which would stop everybody."""
        for _ in range(100):
            os.kill(pid, signal.SIGSTOP)
            with closing(sqlite3.connect(self.local.database, timeout=0.5)) as connection:
                with suppress(sqlite3.OperationalError):  # database is locked
                    connection.execute("BEGIN IMMEDIATE")
                    connection.rollback()
                    return
            os.kill(pid, signal.SIGCONT)
        raise AssertionError("the process holds the store's lock whenever it is stopped")

    def job(self, job_id: str, until: Callable[[Job], Any], seconds: float = 90) -> Job:
        """The job, as soon as `until` is true of it. The API may be away meanwhile."""
        deadline, job = time.monotonic() + seconds, None
        while True:
            assert time.monotonic() < deadline, f"after {seconds:g} s: {job}"
            try:
                if until(job := self.client.jobs.show(job_id)):
                    return job
            except FallLineError as error:
                if not error.passing:
                    raise
            time.sleep(0.05)  # polls a condition


AnyService = TypeVar("AnyService", bound=Service)


@contextmanager
def service_with_points(
    kind: type[AnyService], home: Path, table: Path, environ: Mapping[str, str] | None = None
) -> Iterator[AnyService]:
    """A service on `home`, with all its parts up, that has `table` as the dataset `points`."""
    with LocalService(home, environ) as local:
        local.wait_until_ready()
        service = kind(local)
        service.client.datasets.upload(table, name="points")
        try:
            yield service
        finally:
            service.client.close()


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 rows of two noisy classes of points as CSV."""
    random = np.random.default_rng(5)
    path = tmp_path_factory.mktemp("table") / "points.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["x", "y", "z", "kind"])
        for _ in range(1200):
            x, y, z = random.normal(size=3)
            writer.writerow([x, y, z, "in" if x * x + y * y + random.normal() / 4 < 1.2 else "out"])
    return path


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory, table: Path) -> Iterator[Service]:
    """One for all modules whose tests leave nothing behind that others would mind: to start one takes long.

    Three worker slots, so that some jobs do not fit.
    """
    with service_with_points(Service, tmp_path_factory.mktemp("home"), table, {"FALLLINE_WORKER_SLOTS": "3"}) as found:
        yield found
