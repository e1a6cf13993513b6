"""kill -9 of each process of a real service while it trains, and of all at once: no bit and no point differs."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from service import launcher

from .conftest import PATIENCE_S
from .picture import JobPicture, Json, started

pytestmark = pytest.mark.system
GONE_S = 10.0  # a service whose supervisor was killed is gone within


@pytest.mark.parametrize("part", ["api", "controller", "mlflow", "ray"])
def test_a_part_is_killed(running: Any, spec: Json, undisturbed: JobPicture, part: str) -> None:
    job_id = running.training(spec)
    with running.work_goes_on(job_id, f"kill -9 of {part}"):
        running.kill(part)
    running.succeeded(job_id, undisturbed)
    running.wait_for(running.is_ready, PATIENCE_S, "all parts")


@pytest.mark.parametrize("program", ["raylet", "gcs_server"])
def test_a_process_of_rays_is_killed(running: Any, spec: Json, undisturbed: JobPicture, program: str) -> None:
    job_id = running.training(spec)
    with running.work_goes_on(job_id, f"kill -9 of {program}"):
        os.kill(running.named(program), signal.SIGKILL)
    running.succeeded(job_id, undisturbed)
    running.wait_for(running.is_ready, PATIENCE_S, "all parts")


def kill_supervisor(running: Any) -> None:
    running.local.send(signal.SIGKILL)


def kill_everything(running: Any) -> None:
    """All at once: stopped first, so that none lives to see another one's end."""
    family = [running.supervisor, *launcher.descendants(running.supervisor)]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in family:
            os.kill(pid, number)


@pytest.mark.parametrize("kill", [kill_supervisor, kill_everything])
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
