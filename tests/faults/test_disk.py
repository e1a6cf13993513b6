"""Disks that are nearly full, and full ones, under a real service: no job, no checkpoint and no bit is lost, what
cannot be taken is refused in words, and all goes on by itself as soon as there is room.

Home, checkpoints, artifacts and shared memory lie on small disks of this module's own.
"""

import csv
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from service.client import ServiceError
from service.disk import WAITING, look
from service.local_service import LocalService

from .conftest import LEASE_SECONDS, WORKER_SLOTS, Job, Watched
from .picture import JobPicture
from .small_disks import filled, see_mounts_alone, small_disk

log = logging.getLogger(__name__)
pytestmark = pytest.mark.system
HOME_MB, CHECKPOINTS_MB, ARTIFACTS_MB, SHARED_MB = 64, 8, 8, 400
PATIENCE_S = 240.0
FULL_S = 6.0  # how long a disk stays full: several checkpoints come due, and answers to the controller's writes


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The service's, on small disks."""
    see_mounts_alone()
    with ExitStack() as disks:
        folder = disks.enter_context(small_disk(tmp_path_factory.mktemp("disks") / "home", HOME_MB))
        disks.enter_context(small_disk(folder / "checkpoints", CHECKPOINTS_MB))
        disks.enter_context(small_disk(folder / "artifacts", ARTIFACTS_MB))
        disks.enter_context(small_disk(Path("/dev/shm"), SHARED_MB))
        yield folder


@pytest.fixture(scope="module")
def running(home: Path, table: Path) -> Iterator[Watched]:
    environ = {"FALLLINE_WORKER_SLOTS": str(WORKER_SLOTS), "FALLLINE_LEASE_SECONDS": str(LEASE_SECONDS)}
    with LocalService(home, environ) as local:
        local.wait_until_ready()
        watched = Watched(local)
        watched.client.datasets.upload(table, name="points")
        yield watched
        watched.client.close()


@pytest.fixture(scope="module")
def spec() -> Job:
    """Some seconds of training, with a checkpoint every second."""
    return {
        "dataset": "points",
        "target": "kind",
        "network": {"hidden": [64, 32], "dropout": 0.1},
        "training": {
            "epochs": 120,
            "batch_size": 32,
            "early_stopping": None,
            "log_every_steps": 20,
            "checkpoint_every_seconds": 1,
        },
        "distribution": {"workers": 1, "shards": 16},  # more calls, no more points
    }


@pytest.fixture(scope="module")
def undisturbed(running: Watched, spec: Job) -> JobPicture:
    """What every job of `spec` must come to."""
    return succeeded(running, running.submit(spec), None)


@pytest.fixture
def every_fault(all_faults: bool) -> None:
    """The test is one of those that `make faults` has time for."""
    if not all_faults:
        pytest.skip("`make test` fills the home's disk; `make faults` each of the others, too")


def succeeded(running: Watched, job_id: str, undisturbed: JobPicture | None) -> JobPicture:
    """The job at its end, which nothing tells from the undisturbed one's."""
    running.job(job_id, running.ended, PATIENCE_S)
    found = running.check(job_id, undisturbed=undisturbed).jobs[job_id]
    assert found.job["status"] == "succeeded", found.job["error"]
    return found


def trains(running: Watched, spec: Job) -> str:
    """The id of a job that has its first checkpoint."""
    job_id = running.submit(spec)
    running.wait_for(lambda: running.client.jobs.checkpoints(job_id)["data"], PATIENCE_S, "a checkpoint")
    return job_id


def waits(job: Job) -> bool:
    """The job says that it waits for room."""
    return bool(job["status_reason"] and job["status_reason"].startswith(WAITING))


def refused(call: Any, *arguments: Any, **options: Any) -> ServiceError:
    """The refusal that the service answers with."""
    with pytest.raises(ServiceError) as refusal:
        call(*arguments, **options)
    assert (refusal.value.status, refusal.value.code) == (507, "disk_full")
    return refusal.value


def test_a_nearly_full_disk_pauses_jobs_with_the_reason_and_room_resumes_them(
    running: Watched, home: Path, spec: Job, undisturbed: JobPicture, table: Path
) -> None:
    """But for those that a user has paused or cancelled meanwhile."""
    ours, theirs, unwanted = (running.submit(spec) for _ in range(3))
    for job_id in (ours, theirs, unwanted):
        running.job(job_id, lambda job: job["status"] == "running", PATIENCE_S)
    jobs, reserve = running.client.jobs, look([home])[home].reserve(None)
    with filled(home, leave=reserve // 2):
        for job_id in (ours, theirs, unwanted):
            job = running.job(job_id, lambda job: job["status"] == "paused", PATIENCE_S)
            assert waits(job), job
            assert not job["pause_requested"]
            told = [event["message"] for event in jobs.events_page(job_id, after=0, limit=1000)["data"]]
            assert f"paused: {job['status_reason']}" in told
        assert jobs.pause(theirs)["status_reason"] is None
        assert jobs.cancel(unwanted)["status"] == "cancelled"
        assert waits(jobs.resume(ours))
        assert running.job(ours, waits)["status"] == "paused"
        queued = running.submit(spec)
        assert running.job(queued, waits)["status"] == "queued"
        refusal = refused(running.client.datasets.upload, table, name="late")
        assert refusal.details["free_bytes"] < refusal.details["needed_bytes"]
    healed = time.monotonic()
    running.job(ours, lambda job: job["status"] != "paused", PATIENCE_S)
    log.info("resumed %.1f s after there was room", time.monotonic() - healed)
    for job_id in (ours, queued):
        succeeded(running, job_id, undisturbed)
    assert jobs.show(theirs)["status"] == "paused"
    before = running.step(jobs.resume(theirs))
    running.job(theirs, lambda job: running.step(job) > before, PATIENCE_S)
    jobs.cancel(theirs)
    running.job(theirs, running.ended, PATIENCE_S)


def test_a_full_store_refuses_in_words_loses_no_job_and_recovers_by_itself(
    running: Watched, home: Path, spec: Job, undisturbed: JobPicture, table: Path
) -> None:
    job_id, before = trains(running, spec), running.local.endpoints["pids"]
    with filled(home):
        refusal = None
        while refusal is None:  # the pages that it has already take some
            try:
                running.submit(spec)
            except ServiceError as error:
                refusal = error
        assert (refusal.status, refusal.code) == (507, "disk_full"), refusal
        refused(running.client.datasets.upload, table, name="late")
        time.sleep(FULL_S)  # the experiment itself
    healed = time.monotonic()
    running.wait_for(running.is_ready, PATIENCE_S, "everything is up")
    step = running.step(running.client.jobs.show(job_id))
    running.job(job_id, lambda job: running.step(job) > step or running.ended(job), PATIENCE_S)
    log.info("all is up, and a step is told of %.1f s after there was room", time.monotonic() - healed)
    for each in running.acknowledged[running.acknowledged.index(job_id) :]:
        succeeded(running, each, undisturbed)
    assert running.local.endpoints["pids"] == before  # nobody was started again
    assert {d["name"] for d in running.client.datasets.list()["data"]} == {"points"}


@pytest.mark.usefixtures("every_fault")
def test_a_full_disk_of_checkpoints_costs_no_older_one(
    running: Watched, home: Path, spec: Job, undisturbed: JobPicture
) -> None:
    job_id = trains(running, spec)
    with filled(home / "checkpoints"):
        job = running.job(job_id, lambda job: job["status"] == "paused", PATIENCE_S)
        assert waits(job)
        kept = running.client.jobs.checkpoints(job_id)["data"]
        assert kept
        assert kept[0]["step"] < running.step(job)  # that of the pause was not taken
        (fault,) = [f for f in running.faults(job_id) if "No space left on device" in f["message"]]
        assert "the earlier checkpoints stay" in fault["message"]
    succeeded(running, job_id, undisturbed)


def large(seed: int) -> Job:
    """A spec whose network takes a megabyte; each seed gives another one."""
    return {
        "dataset": "points",
        "target": "kind",
        "network": {"hidden": [512, 512]},
        "training": {"epochs": 2, "seed": seed},
    }


@pytest.mark.usefixtures("every_fault")
def test_a_network_that_cannot_be_stored_waits_to_be_registered(running: Watched, home: Path) -> None:
    artifacts = home / "artifacts"
    with filled(artifacts, leave=2 * look([artifacts])[artifacts].reserve(None)):
        job_id = running.submit(large(1))
        job = running.job(job_id, waits, PATIENCE_S)
        assert (job["status"], job["progress"]["phase"]) == ("running", "registering")
        assert f"{artifacts}: the trained network takes 1.1 MB" in job["status_reason"]
        cancelled = running.submit(large(2))
        running.job(cancelled, waits, PATIENCE_S)
        running.client.jobs.cancel(cancelled)
        assert running.job(cancelled, running.ended)["status"] == "cancelled"
    found = succeeded(running, job_id, None)
    assert found.job["status_reason"] is None


@pytest.mark.usefixtures("every_fault")
def test_an_upload_that_does_not_fit_is_refused_before_it_is_written(
    running: Watched, home: Path, tmp_path: Path
) -> None:
    large = tmp_path / "large.csv"
    with large.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["x", "kind"])
        rows.writerows([k / 7, "in"] for k in range(150_000))
    room = large.stat().st_size
    with filled(home, leave=room // 2 + look([home])[home].reserve(None)):
        refusal = refused(running.client.datasets.upload, large, name="large")
        assert refusal.details["needed_bytes"] > room
        assert running.client.datasets.list()["data"][0]["name"] != "large"
    assert len(list((home / "datasets").iterdir())) == len(running.client.datasets.list()["data"])
    assert running.client.datasets.upload(large, name="large")["status"] == "ready"


@pytest.mark.usefixtures("every_fault")
def test_jobs_train_while_shared_memory_is_full(running: Watched, spec: Job, undisturbed: JobPicture) -> None:
    """The segment of a job is a memfd. A large network comes back through Ray's object store."""
    with filled(Path("/dev/shm")):
        succeeded(running, running.submit(spec), undisturbed)
        succeeded(running, running.submit(large(4)), None)
