"""One service a module, and what the fault tests share: its jobs, its processes and the checker."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.local_service import LocalService

from ..system.conftest import Service, new_service, service_with_points, table
from .invariants import check
from .picture import Family, JobPicture, Picture, take

__all__ = ["new_service", "table"]  # fixtures

WORKER_SLOTS = 6
LEASE_SECONDS = 10.0
Job = dict[str, Any]
logging.getLogger("httpx").setLevel(logging.WARNING)  # seeds and figures are not to drown in requests


class Watched(Service):
    """A service whose jobs and processes are known from the start, so that none can be lost unseen."""

    def __init__(self, local: LocalService) -> None:
        super().__init__(local)
        self.family = Family(self.supervisor)
        self.acknowledged: list[str] = []

    def submit(self, spec: Job) -> str:
        """The id of a job that the service has acknowledged."""
        self.acknowledged.append(str(self.client.jobs.submit(spec)["id"]))
        return self.acknowledged[-1]

    def seated(self) -> list[int]:
        """The pids of the workers that take part in a job's steps."""
        return sorted(pid for pid, name in self.family.look().items() if "GradientWorker.take_seat" in name)

    def faults(self, job_id: str, after: int = 0) -> list[Job]:
        """The job's events of faults after event number `after`, oldest first."""
        found, more = list[Job](), True
        while more:
            page = self.client.jobs.events_page(job_id, after=found[-1]["id"] if found else after, limit=1000)
            found, more = found + page["data"], page["has_more"]
        return [event for event in found if event["type"] == "fault"]

    def losses(self, job_id: str, after: int = 0) -> list[Job]:
        """Those of them that tell of workers that were lost in a step."""
        return [event for event in self.faults(job_id, after) if "workers" in event["data"]]

    def check(self, *job_ids: str, undisturbed: JobPicture | None = None) -> Picture:
        """All invariants, with all that is known of these jobs."""
        return check(lambda: take(self, self.family, self.acknowledged, job_ids, WORKER_SLOTS), undisturbed)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, table: os.PathLike[str]) -> Iterator[Watched]:
    environ = {"FALLLINE_WORKER_SLOTS": str(WORKER_SLOTS), "FALLLINE_LEASE_SECONDS": str(LEASE_SECONDS)}
    with service_with_points(Watched, tmp_path_factory.mktemp("home"), Path(table), environ) as watched:
        yield watched


@pytest.fixture(scope="session")
def all_faults() -> bool:
    """FALLLINE_FAULTS=all, as `make faults` sets it: every fault as often as promised. Else a few."""
    return os.environ.get("FALLLINE_FAULTS") == "all"
