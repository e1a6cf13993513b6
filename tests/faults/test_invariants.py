"""The checker itself: a sound picture is found sound, and each way in which it may be broken is named."""

import copy
from dataclasses import replace
from typing import Any

import pytest

from .invariants import check, violations
from .picture import JobPicture, Picture

NOW = 1000.0


def sound_job(job_id: str = "job_1") -> JobPicture:
    """Four epochs of five steps, logged every third."""
    series = {
        "train_loss": [(step, 1.0 / step) for step in (3, 6, 9, 12, 15, 18, 20)],
        "learning_rate": [(step, 0.1) for step in (3, 6, 9, 12, 15, 18, 20)],
        "validation_loss": [(step, 2.0 / step) for step in (5, 10, 15, 20)],
        "diagnostics/update": [(5, 0.1), (20, 0.2)],
    }
    job = {
        "id": job_id,
        "status": "succeeded",
        "spec": {"training": {"log_every_steps": 3}, "model": {"name": "m"}},
        "progress": {"step": 20, "steps": 20, "epoch": 4, "epochs": 4},
        "result": {"weights_sha256": "ab", "steps": 20, "stopped_early": None},
        "model": {"name": "m", "version": 7},
    }
    return JobPicture(job, None, series, copy.deepcopy(series), (7,), (7,))


def picture(*jobs: JobPicture, **changes: Any) -> Picture:
    found = {seen.job["id"]: seen for seen in jobs or (sound_job(),)}
    whole = Picture(
        taken_at=NOW,
        acknowledged=frozenset(found),
        jobs=found,
        worker_slots=2,
        processes={10: "ray::TrainerHost", 11: "ray::GradientWorker", 12: "ray::GradientWorker"},
        escaped={},
        files=frozenset(),
    )
    return replace(whole, **changes)


def changed(**changes: Any) -> JobPicture:
    """The sound job with fields of `job` changed: `result__steps=19`."""
    seen = sound_job()
    for path, value in changes.items():
        *above, name = path.split("__")
        place: Any = seen.job
        for each in above:
            place = place[each]
        place[name] = value
    return seen


def running(lease: float | None) -> JobPicture:
    return JobPicture({"id": "job_1", "status": "running"}, lease)


def with_series(where: str, name: str, points: list[tuple[int, float]] | None) -> JobPicture:
    seen = sound_job()
    series = dict(getattr(seen, where))
    if points is None:
        del series[name]
    else:
        series[name] = points
    return replace(seen, **{where: series})


def test_a_sound_picture_is_sound() -> None:
    assert violations(picture(), sound_job()) == []
    at_work = {11: "ray::GradientWorker.take_seat", 10: "ray::TrainerHost"}
    busy = picture(running(NOW + 1), processes=at_work)
    assert violations(busy) == []
    assert violations(picture(JobPicture({"id": "job_1", "status": "queued"}))) == []
    unregistered = replace(changed(spec__model=None, model=None), listed_versions=(), tracked_versions=())
    assert violations(picture(unregistered)) == []


LOSS = sound_job().series["train_loss"]
VALIDATION = sound_job().series["validation_loss"]
BROKEN = {
    "a lost job": (picture(acknowledged=frozenset({"job_1", "job_2"})), "I1: job_2 was acknowledged and is not there"),
    "a step too few": (picture(changed(result__steps=19, progress__step=19)), "I2: job_1 has applied 19 steps of 20"),
    "a step untold": (picture(changed(progress__step=19)), "I2: job_1 tells of step 19, its result of 20"),
    "a gap": (picture(with_series("series", "train_loss", LOSS[:2] + LOSS[3:])), "I2: job_1, train_loss: lacks 9"),
    "a step twice": (
        picture(with_series("series", "train_loss", [*LOSS[:2], *LOSS[1:]])),
        "I2: job_1, train_loss: has twice 6",
    ),
    "a strange step": (
        picture(with_series("series", "learning_rate", [(1, 0.1), *LOSS])),
        "I2: job_1, learning_rate: has beside 1",
    ),
    "disorder": (
        picture(with_series("series", "train_loss", [LOSS[1], LOSS[0], *LOSS[2:]])),
        "I2: job_1, train_loss: the steps are out of order",
    ),
    "other weights": (
        picture(changed(result__weights_sha256="cd")),
        "I3: job_1 has ended with cd, undisturbed with ab",
    ),
    "another loss": (
        picture(with_series("series", "train_loss", [(3, 9.0), *LOSS[1:]])),
        "I2: job_1 and undisturbed, train_loss: other values at steps 3",
    ),
    "an epoch without its point": (
        picture(with_series("series", "validation_loss", VALIDATION[1:])),
        "I4: job_1, validation_loss in the store: lacks 5",
    ),
    "a duplicate in MLflow": (
        picture(with_series("tracked", "validation_loss", [VALIDATION[0], *VALIDATION])),
        "I4: job_1, validation_loss in MLflow: has twice 5",
    ),
    "a gap in MLflow": (
        picture(with_series("tracked", "train_loss", LOSS[:-1])),
        "I4: job_1, train_loss in MLflow: lacks 20",
    ),
    "another value in MLflow": (
        picture(with_series("tracked", "train_loss", [*LOSS[:-1], (20, 3.0)])),
        "I4: job_1, train_loss in MLflow and in the store: other values at steps 20",
    ),
    "a series that MLflow lacks": (
        picture(with_series("tracked", "train_loss", None)),
        "I4: job_1, train_loss is in the store alone",
    ),
    "two versions": (
        picture(replace(sound_job(), tracked_versions=(7, 8))),
        "I5: job_1: the job tells of (7,), the API lists (7,), MLflow (7, 8); expected the same 1",
    ),
    "no version": (
        picture(replace(changed(model=None), listed_versions=(), tracked_versions=())),
        "I5: job_1: the job tells of (None,), the API lists (), MLflow (); expected the same 1",
    ),
    "an unwanted version": (
        picture(changed(spec__model=None, model=None)),
        "I5: job_1: the job tells of (), the API lists (7,), MLflow (7,); expected the same 0",
    ),
    "an orphan": (picture(escaped={99: "ray::IDLE"}), "I6: process 99 is nobody's child: ray::IDLE"),
    "a file": (picture(files=frozenset({"fallline-1"})), "I6: /dev/shm/fallline-1 is left"),
    "a worker too many": (
        picture(processes=dict.fromkeys((1, 2, 3), "ray::GradientWorker")),
        "I6: 3 workers on 2 slots",
    ),
    "a worker at work for nobody": (
        picture(processes={11: "ray::GradientWorker.take_seat"}),
        "I6: no job runs, and process 11 is at work: ray::GradientWorker.take_seat",
    ),
    "no lease": (picture(running(None)), "I7: job_1 runs without a lease"),
    "an old lease": (picture(running(NOW - 2)), "I7: job_1 runs under a lease that ended 2.0 s ago"),
    "no status": (picture(JobPicture({"id": "job_1", "status": "lost"})), "I7: job_1 is lost, which is no status"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_picture_is_told(name: str) -> None:
    broken, told = BROKEN[name]
    assert told in violations(broken, sound_job())


def test_who_checks_waits_for_what_is_being_cleaned_up() -> None:
    looks = [picture(escaped={99: "ray::IDLE"}), picture()]
    assert check(lambda: looks.pop(0)) == picture()


def test_what_stays_broken_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.faults.invariants.SETTLED_S", 0.0)
    with pytest.raises(AssertionError, match="I6: /dev/shm/fallline-1 is left"):
        check(lambda: picture(files=frozenset({"fallline-1"})))
