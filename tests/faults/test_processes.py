"""kill -9 of each process of a real service while it trains, and of all at once, and MLflow stopped for a while."""

import logging
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import launcher

from .conftest import PATIENCE_S, THOROUGH
from .picture import JobPicture, Json, started

pytestmark = pytest.mark.system
log = logging.getLogger(__name__)
GONE_S = 10.0  # a service whose supervisor was killed is gone within


@pytest.mark.parametrize(
    "part", [pytest.param("api", marks=THOROUGH), "controller", pytest.param("mlflow", marks=THOROUGH)]
)
def test_a_part_is_killed(running: Any, spec: Json, undisturbed: JobPicture, part: str) -> None:
    job_id = running.training(spec)
    with running.work_goes_on(job_id, f"kill -9 of {part}"):
        running.kill(part)
    running.succeeded(job_id, undisturbed)
    running.wait_for(running.is_ready, PATIENCE_S, "all parts")
    assert running.faults(job_id) == [], "the trainer has noticed"


@pytest.mark.parametrize(
    "program", [pytest.param("head", marks=THOROUGH), "raylet", pytest.param("gcs_server", marks=THOROUGH)]
)
def test_ray_is_killed_in_whole_or_in_part(running: Any, spec: Json, undisturbed: JobPicture, program: str) -> None:
    job_id, before = running.training(spec), running.local.endpoints["ray"]
    with running.work_goes_on(job_id, f"kill -9 of Ray's {program}"):
        os.kill(running.local.endpoints["pids"]["ray"] if program == "head" else running.named(program), signal.SIGKILL)
    running.succeeded(job_id, undisturbed)
    running.wait_for(lambda: running.local.endpoints["ray"] != before, PATIENCE_S, "another Ray")
    running.wait_for(running.is_ready, PATIENCE_S, "all parts")


def run_status(running: Any, job_id: str) -> str | None:
    """How the job's run stands in MLflow; None: it has none yet."""
    run = running.client.jobs.show(job_id)["mlflow"]
    if run is None:
        return None
    url = f"{running.local.endpoints['mlflow']}/api/2.0/mlflow/runs/get"
    return str(httpx.get(url, params={"run_id": run["run_id"]}, timeout=30).json()["run"]["info"]["status"])


def test_a_hung_mlflow_delays_no_job_and_loses_no_metric(running: Any, spec: Json, undisturbed: JobPicture) -> None:
    """SIGSTOP of the server and all below it, then SIGCONT."""
    job_id = running.training(spec)
    with running.stopped("mlflow"):
        # The reconcile loop goes on: another job comes and is cancelled.
        other = running.training({**spec, "training": {**spec["training"], "epochs": 100_000}})
        running.client.jobs.cancel(other)
        log.info("cancelled after %.1f s", running.wait_for(lambda: has_ended(running, other), PATIENCE_S, "its end"))
        waiting = running.job(
            job_id, lambda job: job["progress"]["phase"] == "registering" and job["status_reason"], PATIENCE_S
        )
        assert waiting["status_reason"].startswith("waiting for MLflow since 20")
        assert waiting["status"] == "running"
        running.wait_for(lambda: running.client.health().get("missing") == ["mlflow"], PATIENCE_S, "readyz naming it")
        late = running.submit(spec)
        running.job(late, lambda job: (job["progress"] or {}).get("phase") == "registering", PATIENCE_S)
        running.client.jobs.cancel(late)
        running.wait_for(lambda: has_ended(running, late), PATIENCE_S, "its end")  # not only when MLflow is back
    running.succeeded(job_id, undisturbed)
    assert len([m for m in running.messages(job_id, "log") if m.startswith("waiting for MLflow")]) == 1
    for ended in (other, late):
        running.wait_for(lambda id=ended: run_status(running, id) == "KILLED", PATIENCE_S, f"the end of {ended}'s run")
    assert running.check(late).jobs[late].tracked_versions == ()


def has_ended(running: Any, job_id: str) -> bool:
    return bool(running.ended(running.client.jobs.show(job_id)))


def kill_supervisor(running: Any) -> None:
    running.local.send(signal.SIGKILL)


def kill_everything(running: Any) -> None:
    """All at once: stopped first, so that none lives to see another one's end."""
    family = [running.supervisor, *launcher.descendants(running.supervisor)]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in family:
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(pid, number)


@pytest.mark.parametrize("kill", [pytest.param(kill_supervisor, marks=THOROUGH), kill_everything])
def test_the_service_is_killed_and_started_again(running: Any, spec: Json, undisturbed: JobPicture, kill: Any) -> None:
    folder = ray_folder(running)
    jobs = [running.training(spec), running.submit(spec)]
    paused = running.submit(spec)
    running.client.jobs.pause(paused)
    family = {pid: started(pid) for pid in (running.supervisor, *running.processes())}

    def alive() -> list[int]:
        return [pid for pid, since in family.items() if since and started(pid) == since]

    with running.work_goes_on(jobs[0], f"{kill.__name__}, and a new start"):
        kill(running)
        running.local.wait()
        running.wait_for(lambda: not alive(), GONE_S, "the end of all")
        running.start_again()
    running.client.jobs.resume(paused)
    for job_id in (*jobs, paused):
        running.succeeded(job_id, undisturbed)
    running.wait_for(running.is_ready, PATIENCE_S, "all parts")
    assert folder != ray_folder(running)
    assert not folder.exists()


def ray_folder(running: Any) -> Path:
    """Where Ray's sockets and scratch files are: outside of the home."""
    return Path(os.readlink(running.local.home / "run" / "ray"))
