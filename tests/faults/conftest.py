"""One service a module, and what the fault tests share: its jobs, its processes and the checker."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.local_service import LocalService

from ..system.conftest import Service, service_with_points, table
from .invariants import check
from .picture import Family, JobPicture, Picture, take

__all__ = ["table"]  # a fixture

WORKER_SLOTS = 6
LEASE_SECONDS = 10.0
PATIENCE_S = 240.0  # for what takes some seconds on an idle machine
ROOT = Path(__file__).parents[2]
THOROUGH = pytest.mark.skipif(os.environ.get("FALLLINE_FAULTS") != "all", reason="`make faults` does it")
Job = dict[str, Any]
log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # seeds and figures are not to drown in requests


class Watched(Service):
    """A service whose jobs and processes are known from the start, so that none can be lost unseen."""

    worker_slots = WORKER_SLOTS

    def __init__(self, local: LocalService) -> None:
        super().__init__(local)
        self.family = Family(self.supervisor)
        self.acknowledged: list[str] = []

    def start_again(self) -> None:
        """All of it, on the same home, after the end of all of it; what was acknowledged before counts on."""
        self.client.close()
        acknowledged = self.acknowledged
        self.local.start()
        self.__init__(self.local)  # type: ignore[misc]
        self.acknowledged = acknowledged

    def submit(self, spec: Job) -> str:
        """The id of a job that the service has acknowledged."""
        self.acknowledged.append(str(self.client.jobs.submit(spec)["id"]))
        return self.acknowledged[-1]

    def training(self, spec: Job) -> str:
        """The id of a new job whose steps are being committed."""
        job_id = self.submit(spec)
        self.job(job_id, lambda job: self.step(job) > 10, PATIENCE_S)
        return job_id

    @contextmanager
    def work_goes_on(self, job_id: str, fault: str) -> Iterator[None]:
        """Does `fault`, the block, to the running job; tells how long it took until a further step was committed."""
        step = self.step(self.client.jobs.show(job_id))
        begun = time.monotonic()
        yield
        self.job(job_id, lambda job: self.step(job) > step or self.ended(job), PATIENCE_S)
        seconds, load = time.monotonic() - begun, os.getloadavg()[0]
        log.info("%s: work goes on after %.1f s; load %.1f", fault, seconds, load)

    def seated(self) -> list[int]:
        """The pids of the workers that take part in a job's steps."""
        return sorted(pid for pid, name in self.family.look().items() if "GradientWorker.take_seat" in name)

    def named(self, program: str) -> int:
        """The pid of the one process of the service that runs the file `program`."""
        (found,) = [pid for pid in self.processes() if Path(f"/proc/{pid}/exe").resolve().name == program]
        return found

    @contextmanager
    def inside(self, *fault: str) -> Iterator[Callable[[], None]]:
        """Call what it gives to have a fault of `inside` happen at once in an actor that is at work.

        What makes it has joined the cluster before the block begins, which takes longer than many a job.
        """
        command = [sys.executable, "-m", "tests.faults.inside", *fault]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=self.environment("controller"), cwd=ROOT, **pipes) as maker:

            def happen() -> None:
                maker.communicate("\n", timeout=PATIENCE_S)
                assert maker.returncode == 0

            try:
                assert maker.stdout is not None
                assert maker.stdout.readline() == "joined\n"
                yield happen
            finally:
                maker.kill()

    def events(self, job_id: str, after: int = 0) -> list[Job]:
        """The job's events after number `after`, oldest first."""
        found, more = list[Job](), True
        while more:
            page = self.client.jobs.events_page(job_id, after=found[-1]["id"] if found else after, limit=1000)
            found, more = found + page["data"], page["has_more"]
        return found

    def messages(self, job_id: str, kind: str) -> list[str]:
        """What the job's events of that type say."""
        return [event["message"] for event in self.events(job_id) if event["type"] == kind]

    def resumed_at(self, job_id: str) -> list[int]:
        """The steps that attempts of the job went on from."""
        begins, told = "goes on from the checkpoint of step ", self.messages(job_id, "checkpoint")
        return [int(message.removeprefix(begins)) for message in told if message.startswith(begins)]

    def faults(self, job_id: str, after: int = 0) -> list[Job]:
        """The job's events of faults after event number `after`, oldest first."""
        return [event for event in self.events(job_id, after) if event["type"] == "fault"]

    def losses(self, job_id: str, after: int = 0) -> list[Job]:
        """Those of them that tell of workers that were lost in a step."""
        return [event for event in self.faults(job_id, after) if "workers" in event["data"]]

    def check(self, *job_ids: str, undisturbed: JobPicture | None = None) -> Picture:
        """All invariants, with all that is known of these jobs."""
        return check(lambda: take(self, self.family, self.acknowledged, job_ids, self.worker_slots), undisturbed)

    def succeeded(self, job_id: str, undisturbed: JobPicture) -> Job:
        """The job, at its end, which nothing tells from the undisturbed one's."""
        self.job(job_id, self.ended, PATIENCE_S)
        job: Job = self.check(job_id, undisturbed=undisturbed).jobs[job_id].job
        assert job["status"] == "succeeded", job["error"]
        return job


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, table: os.PathLike[str]) -> Iterator[Watched]:
    environ = {"FALLLINE_WORKER_SLOTS": str(WORKER_SLOTS), "FALLLINE_LEASE_SECONDS": str(LEASE_SECONDS)}
    with service_with_points(Watched, tmp_path_factory.mktemp("home"), Path(table), environ) as watched:
        yield watched


@pytest.fixture(scope="module")
def spec() -> Job:
    """Some seconds of training, so that faults come while it trains, with some checkpoints."""
    training = {"epochs": 400, "batch_size": 32, "early_stopping": None, "log_every_steps": 20}
    return {
        "dataset": "points",
        "target": "kind",
        "network": {"hidden": [64, 32], "dropout": 0.1},
        "training": {**training, "checkpoint_every_seconds": 1},
        "distribution": {"workers": 2, "shards": 4},
    }


@pytest.fixture(scope="session")
def known() -> dict[str, JobPicture]:
    """What jobs come to that nothing happens to, by their specs: the same in every service."""
    return {}


@pytest.fixture(scope="module")
def undisturbed(running: Watched, spec: Job, known: dict[str, JobPicture]) -> JobPicture:
    """What every job of `spec` must come to, on any number of workers."""
    name = json.dumps(spec)
    if name not in known:
        job_id = running.submit(spec)
        running.job(job_id, running.ended, PATIENCE_S)
        known[name] = running.check(job_id).jobs[job_id]
        assert known[name].job["status"] == "succeeded", known[name].job["error"]
        assert running.faults(job_id) == []
    return known[name]


@pytest.fixture(scope="session")
def all_faults() -> bool:
    """FALLLINE_FAULTS=all, as `make faults` sets it: every fault as often as promised. Else a few."""
    return os.environ.get("FALLLINE_FAULTS") == "all"
