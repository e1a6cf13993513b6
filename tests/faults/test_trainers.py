"""A trainer killed at any point of a step or of a checkpoint, left alone, and given broken checkpoints."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from worker.checkpoint_store import CheckpointStore

from ..system.conftest import service_with_points
from .conftest import LEASE_SECONDS, PATIENCE_S, THOROUGH, WORKER_SLOTS, Watched
from .picture import JobPicture, Json

pytestmark = pytest.mark.system
ORPHAN_S = 15.0

# Where it is killed: by the turn of the calls of the system's that a save makes; those of a quick run last.
POINTS = {
    "before the write": ("mkdir", 1, "before"),
    "after the arrays are written": ("fsync", 1, "after"),
    "after the write": ("fsync", 3, "after"),
    "after the rename": ("rename", 1, "after"),
    "after the commit": ("fsync", 4, "after"),
    "before a step's commit": ("run_steps", 3, "before"),
    "after a step's commit": ("run_steps", 3, "after"),
    "in the write": ("fsync", 1, "before"),
    "before the rename": ("rename", 1, "before"),
}
QUICK = {"in the write", "before the rename"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, table: Path) -> Iterator[Watched]:
    environ = {"FALLLINE_WORKER_SLOTS": str(WORKER_SLOTS), "FALLLINE_LEASE_SECONDS": str(LEASE_SECONDS)}
    environ |= {"FALLLINE_TRAINER_ORPHAN_SECONDS": str(ORPHAN_S)}
    with service_with_points(Watched, tmp_path_factory.mktemp("home"), table, environ) as watched:
        yield watched


@pytest.fixture(scope="module")
def spec(spec: Json) -> Json:
    """Long enough for a second checkpoint, a second after the first, on a machine several times as quick."""
    return {**spec, "training": {**spec["training"], "epochs": 900}}


@pytest.mark.parametrize("point", POINTS)
def test_a_trainer_is_killed(running: Any, spec: Json, undisturbed: JobPicture, all_faults: bool, point: str) -> None:
    if not all_faults and point not in QUICK:
        pytest.skip("`make faults` kills it at every point")
    call, turn, when = POINTS[point]
    with running.inside("die", call, str(turn), when) as dies:
        job_id = running.training(spec)
        running.wait_for(lambda: running.client.jobs.checkpoints(job_id)["data"], PATIENCE_S, "a checkpoint")
        known = running.client.jobs.checkpoints(job_id)["data"][0]["step"]
        with running.work_goes_on(job_id, f"kill -9 of the trainer {point}"):
            dies()
            running.wait_for(lambda: running.faults(job_id), PATIENCE_S, "a word of the loss")
    running.succeeded(job_id, undisturbed)
    (fault,) = running.faults(job_id)
    assert "the job is started again" in fault["message"]
    (step,) = running.resumed_at(job_id)
    assert step >= known


def test_a_trainer_that_nobody_polls_saves_and_ends_with_its_crew(
    running: Any, spec: Json, undisturbed: JobPicture, all_faults: bool
) -> None:
    """SIGSTOP of the controller past its lease, and past a trainer's patience; then it goes on."""
    if not all_faults:
        pytest.skip(f"a trainer's patience lasts {ORPHAN_S:g} s: `make faults` waits for it")
    job_id = running.training({**spec, "training": {**spec["training"], "epochs": 100_000}})
    controller = running.pid("controller")
    running.stop_between_transactions(controller)
    running.wait_for(lambda: not running.seated(), ORPHAN_S + PATIENCE_S, "the end of the crew")
    (kept, *_) = CheckpointStore(running.local.home / "checkpoints" / job_id).list()
    os.kill(controller, signal.SIGCONT)
    running.wait_for(lambda: running.resumed_at(job_id), PATIENCE_S, "the job going on")
    assert running.resumed_at(job_id) == [kept.step]
    running.client.jobs.cancel(job_id)
    running.job(job_id, running.ended, PATIENCE_S)
    running.check(job_id)
    running.succeeded(running.submit(spec), undisturbed)


def damage(folder: Path, how: str) -> None:
    path = folder / "arrays.safetensors"
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "zeroed":
        path.write_bytes(bytes(path.stat().st_size))
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)


def without_trainer(running: Any, spec: Json) -> tuple[str, list[Path]]:
    """A paused job and its checkpoints, newest first, of which there are two at least."""
    job_id = running.submit(spec)
    for _ in range(2):
        began = max(running.resumed_at(job_id), default=0)
        running.job(job_id, lambda job, began=began: running.step(job) > began + 50, PATIENCE_S)
        running.client.jobs.pause(job_id)
        running.job(job_id, lambda job: job["status"] == "paused", PATIENCE_S)
        before = len(running.resumed_at(job_id))
        if before == 0:
            running.client.jobs.resume(job_id)
            running.wait_for(lambda: running.resumed_at(job_id), PATIENCE_S, "the job going on")
    folder = running.local.home / "checkpoints" / job_id
    return job_id, [folder / f"step-{each.step}" for each in CheckpointStore(folder).list()]


@pytest.mark.parametrize(
    "how", ["flipped", *(pytest.param(how, marks=THOROUGH) for how in ("truncated", "zeroed", "deleted"))]
)
def test_a_broken_checkpoint_is_set_aside_for_the_one_before(
    running: Any, spec: Json, undisturbed: JobPicture, how: str
) -> None:
    job_id, (newest, before, *_) = without_trainer(running, spec)
    damage(newest, how)
    running.client.jobs.resume(job_id)
    running.succeeded(job_id, undisturbed)
    assert f"step-{running.resumed_at(job_id)[-1]}" == before.name
    told = f"the checkpoint of step {newest.name.removeprefix('step-')} is broken ("
    assert any(message.startswith(told) for message in running.messages(job_id, "fault"))


def test_where_every_checkpoint_is_broken_the_job_starts_over_and_says_so(
    running: Any, spec: Json, undisturbed: JobPicture
) -> None:
    job_id, checkpoints = without_trainer(running, spec)
    for each in checkpoints:
        damage(each, "flipped")
    running.client.jobs.resume(job_id)
    running.succeeded(job_id, undisturbed)
    assert len(running.resumed_at(job_id)) == 1  # after the first pause
    assert "no checkpoint is whole: the job starts again from step 0" in running.messages(job_id, "fault")
