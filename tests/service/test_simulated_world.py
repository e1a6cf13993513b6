"""The real controller's code in a simulated world: whatever goes wrong, nothing forbidden happens, and every job ends.

FALLLINE_SIMULATED_WORLDS=10000 tries so many; without it, 500. A failure names its seed: `live(seed)` runs it again.
"""

import os
from types import SimpleNamespace

import pytest

from service import job_keeper, job_state
from service.job_events import Claim

from .simulated_cluster import Violation
from .simulated_world import World

WORLDS = int(os.environ.get("FALLLINE_SIMULATED_WORLDS", "500"))
TURNS = 150
SEEDS = 1000  # at most, until a planted bug is found; the rarest shows in two of them


@pytest.fixture(autouse=True)
def plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a trainer is sent is no matter here."""
    monkeypatch.setattr(
        job_keeper, "training_plan", lambda job, dataset, settings: SimpleNamespace(job_id=job.id, epochs=1)
    )


def live(seed: int) -> World:
    world = World(seed, trouble=1.0)
    world.live(TURNS)
    world.heal()
    return world


def test_nothing_forbidden_happens_and_every_job_ends() -> None:
    ends: dict[str, int] = {}
    takeovers = 0
    for seed in range(WORLDS):
        try:
            world = live(seed)
        except (Exception, Violation) as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        takeovers += (world.store.lead.epoch if world.store.lead else 1) - 1
        for job in world.store.jobs.values():
            ends[job.status] = ends.get(job.status, 0) + 1
    # The worlds are worth looking at: every end is reached, and the lead changes hands.
    assert min(ends.get(status, 0) for status in job_state.FINAL) > WORLDS / 20
    assert takeovers > WORLDS


def found(bug: str) -> int:
    """The seed that finds the planted bug."""
    for seed in range(SEEDS):
        try:
            live(seed)
        except Violation:
            return seed
    raise AssertionError(f"{SEEDS} seeds have not found that {bug}")


def test_a_removed_fence_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_state, "_held", lambda state, epoch: state)
    found("a former controller's writes are accepted")


def test_claims_of_live_leases_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = job_state._claim

    def under_the_same_epoch(state: job_state.JobState, event: Claim) -> job_state.Step:
        after, effects = claim(state, event)
        same = state.lease_epoch or 1
        return job_state.replace(after, lease_epoch=same), effects

    monkeypatch.setattr(job_state, "_claim", under_the_same_epoch)
    found("an epoch has two owners")


def test_a_cancellation_of_what_mlflow_may_have_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    begins = job_state._registration_begins

    def without_saying_so(state: job_state.JobState, event: job_state.RegistrationBegins) -> job_state.Step:
        after, effects = begins(state, event)
        return job_state.replace(after, registering=False), effects

    monkeypatch.setattr(job_state, "_registration_begins", without_saying_so)
    found("a cancelled job has a version in MLflow")


def test_a_start_on_a_full_disk_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = job_state._trainer_missing
    monkeypatch.setattr(
        job_state, "_trainer_missing", lambda state, event: missing(state, job_state.replace(event, shortage=None))
    )
    found("a trainer is started on a full disk")


def test_a_user_whose_pause_is_taken_for_the_services_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pause = job_state._pause

    def forgotten(state: job_state.JobState, event: job_state.Pause) -> job_state.Step:
        after, effects = pause(state, event)
        return job_state.replace(after, waits_for_disk=state.waits_for_disk), effects

    monkeypatch.setattr(job_state, "_pause", forgotten)
    monkeypatch.setattr(job_state, "_paused", lambda state, at: job_state._move(state, job_state.PAUSED, at, "paused"))
    found("a job that its user has paused goes on by itself")


def test_jobs_that_wait_for_the_disk_for_ever_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_state, "_room_again", lambda state: (state, ()))
    found("nobody resumes what the disk has paused")


def test_a_lost_intention_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_state, "_trainer_missing", lambda state, event: (state, ()))
    found("nobody starts the jobs")
