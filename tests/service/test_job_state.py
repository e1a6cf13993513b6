"""A job's life, walked at random: only allowed pairs, a final status stays, asking twice is asking once."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidTransition, LeaseLost
from service.job_events import (
    Cancel,
    Claim,
    Do,
    Effect,
    End,
    Event,
    Pause,
    RegistrationBegins,
    Renew,
    Resume,
    RoomAgain,
    Scale,
    TakeOver,
    Tell,
    TrainerEnded,
    TrainerLost,
    TrainerMissing,
    TrainerRuns,
)
from service.job_state import (
    ALLOWED,
    CANCELLED,
    FAILED,
    FINAL,
    PAUSED,
    QUEUED,
    RUNNING,
    STATUSES,
    SUCCEEDED,
    JobState,
    is_claimable,
    step,
)

ERROR = {"code": "internal", "message": "broken"}
QUEUED_JOB = JobState("job_1")
RUNNING_JOB = JobState("job_1", RUNNING, False, False, "one", 3, 100.0, started_at=1.0)
TRAINED_JOB = replace(RUNNING_JOB, trained=True)
PAUSED_JOB = JobState("job_1", PAUSED, lease_epoch=3, started_at=1.0)

FULL = "waiting for room on the disk: 1.0 MB are free"
DISK_JOB = replace(PAUSED_JOB, waits_for_disk=FULL)

times, epochs = st.floats(0, 200), st.integers(0, 5)
errors = st.one_of(st.none(), st.just(ERROR))
shortages = st.one_of(st.none(), st.just(FULL))
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Cancel, times),
    st.builds(Pause, times),
    st.builds(Resume, times),
    st.builds(Scale, times, st.integers(1, 9)),
    st.builds(Claim, times, st.sampled_from(["one", "two"]), st.floats(0, 50)),
    st.builds(Renew, times, st.sampled_from(["one", "two"]), st.floats(0, 50)),
    st.builds(TakeOver, times),
    st.builds(RoomAgain, times),
    st.builds(TrainerMissing, times, epochs, shortages),
    st.builds(TrainerRuns, times, epochs, shortages),
    st.builds(TrainerEnded, times, epochs, st.sampled_from([SUCCEEDED, FAILED, CANCELLED, PAUSED]), errors),
    st.builds(TrainerLost, times, epochs, st.just("lost"), errors),
    st.builds(RegistrationBegins, times, epochs),
    st.builds(End, times, epochs, st.sampled_from([SUCCEEDED, FAILED]), errors),
)


def after(state: JobState, event: Event) -> JobState:
    return step(state, event)[0]


def deeds(state: JobState, event: Event) -> list[Effect]:
    return [effect for effect in step(state, event)[1] if isinstance(effect, Do)]


def test_no_way_leads_out_of_a_final_status_and_one_leads_out_of_every_other() -> None:
    assert {current for current, _ in ALLOWED} == set(STATUSES) - FINAL
    assert all(current != following for current, following in ALLOWED)


def test_every_status_is_reached_from_queued_and_cancelled_from_every_other() -> None:
    reached = {QUEUED}
    for _ in STATUSES:
        reached |= {following for current, following in ALLOWED if current in reached}
    assert reached == set(STATUSES)
    assert {(status, CANCELLED) for status in set(STATUSES) - FINAL} <= ALLOWED


@given(st.lists(EVENTS, max_size=40))
def test_any_walk_keeps_the_rules(events: list[Event]) -> None:
    """Refusals change nothing, as in the store."""
    state = QUEUED_JOB
    for event in events:
        try:
            following, effects = step(state, event)
        except (InvalidTransition, LeaseLost):
            continue
        told = [effect.event for effect in effects if isinstance(effect, Tell)]
        if following.status == state.status:
            assert not [event for event in told if event.type == "status"]
        else:
            assert (state.status, following.status) in ALLOWED
            assert [event.data["status"] for event in told if event.type == "status"] == [following.status]
        if state.status in FINAL:
            assert following == state
        assert following.lease_epoch - state.lease_epoch == isinstance(event, Claim)
        assert (following.lease_owner is None) == (following.status != RUNNING)
        assert following.trained >= state.trained
        assert following.registering <= following.trained
        assert following.cancel_requested >= state.cancel_requested
        assert following.pause_requested <= (following.status == RUNNING)
        assert following.waits_for_disk is None or following.status in (RUNNING, PAUSED)
        assert following.waits_for_disk is None or not following.trained
        assert (following.finished_at is not None) == (following.status in FINAL)
        assert following.status != SUCCEEDED or following.trained
        if following.status == FAILED and following != state:
            assert following.error is not None or isinstance(event, TrainerEnded | End)
        state = following


@given(EVENTS, st.sampled_from([QUEUED_JOB, RUNNING_JOB, TRAINED_JOB, PAUSED_JOB, DISK_JOB]))
def test_what_comes_twice_changes_nothing_more(event: Event, state: JobState) -> None:
    """But for a claim: that is refused, or counted."""
    try:
        once = after(state, event)
        twice = after(once, event)
    except (InvalidTransition, LeaseLost):
        return
    assert isinstance(event, Claim) or twice == once


@pytest.mark.parametrize(
    "event",
    [
        TrainerMissing(5.0, 2),
        TrainerRuns(5.0, 2),
        TrainerEnded(5.0, 2, SUCCEEDED),
        TrainerLost(5.0, 2, "lost"),
        RegistrationBegins(5.0, 2),
        End(5.0, 2, FAILED, ERROR),
    ],
)
@pytest.mark.parametrize("state", [RUNNING_JOB, TRAINED_JOB, PAUSED_JOB, QUEUED_JOB])
def test_a_former_controller_is_refused(event: Event, state: JobState) -> None:
    with pytest.raises(LeaseLost):
        step(state, event)


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (QUEUED_JOB, CANCELLED),
        (PAUSED_JOB, CANCELLED),
        (DISK_JOB, CANCELLED),
        (RUNNING_JOB, RUNNING),
        (TRAINED_JOB, CANCELLED),  # MLflow has not heard of its model, and may be down for hours
        (replace(TRAINED_JOB, registering=True), RUNNING),
    ],
)
def test_where_nobody_works_on_a_job_it_is_cancelled_at_once(state: JobState, status: str) -> None:
    asked = after(state, Cancel(5.0))
    assert (asked.status, asked.cancel_requested) == (status, True)


@pytest.mark.parametrize("status", [SUCCEEDED, FAILED])
def test_another_end_is_not_cancelled_paused_or_resumed(status: str) -> None:
    ended = JobState("job_1", status, finished_at=5.0)
    for event in (Cancel(6.0), Pause(6.0), Resume(6.0)):
        with pytest.raises(InvalidTransition):
            step(ended, event)


def test_a_request_to_cancel_wins_until_the_registration_begins() -> None:
    asked = replace(RUNNING_JOB, cancel_requested=True)
    assert deeds(asked, TrainerRuns(5.0, 3)) == [Do.CANCEL]
    for outcome in (CANCELLED, SUCCEEDED, PAUSED):
        assert after(asked, TrainerEnded(5.0, 3, outcome)).status == CANCELLED
    assert after(asked, TrainerEnded(5.0, 3, FAILED, ERROR)).status == FAILED
    assert after(asked, TrainerMissing(5.0, 3)).status == CANCELLED
    begun = after(TRAINED_JOB, RegistrationBegins(5.0, 3))
    assert after(after(begun, Cancel(6.0)), RegistrationBegins(7.0, 3)).registering  # again, after an outage
    assert after(after(begun, Cancel(6.0)), End(7.0, 3, SUCCEEDED)).status == SUCCEEDED


def test_a_job_pauses_at_once_or_when_its_trainer_has_written_a_checkpoint() -> None:
    assert after(QUEUED_JOB, Pause(5.0)).status == PAUSED
    asked = after(RUNNING_JOB, Pause(5.0))
    assert (asked.status, asked.pause_requested) == (RUNNING, True)
    assert deeds(asked, TrainerRuns(6.0, 3)) == [Do.PAUSE]
    paused = after(asked, TrainerEnded(7.0, 3, PAUSED))
    assert (paused.status, paused.pause_requested, paused.lease_owner) == (PAUSED, False, None)
    assert after(asked, TrainerMissing(7.0, 3)).status == PAUSED
    assert after(paused, Resume(8.0)).status == QUEUED


def test_a_full_disk_pauses_a_job_after_its_checkpoint_and_room_resumes_it() -> None:
    asked = after(RUNNING_JOB, TrainerRuns(5.0, 3, FULL))
    assert (asked.status, asked.pause_requested, asked.waits_for_disk) == (RUNNING, False, FULL)
    assert deeds(asked, TrainerRuns(6.0, 3, "other words")) == [Do.PAUSE]
    paused, effects = step(asked, TrainerEnded(7.0, 3, PAUSED))
    assert (paused.status, paused.waits_for_disk, Do.RELEASE in effects) == (PAUSED, FULL, True)
    assert [effect.event.message for effect in effects if isinstance(effect, Tell)] == [f"paused: {FULL}"]
    resumed = after(paused, RoomAgain(8.0))
    assert (resumed.status, resumed.waits_for_disk) == (QUEUED, None)
    assert after(RUNNING_JOB, TrainerMissing(5.0, 3, FULL)).status == PAUSED  # one that was to be started again


def test_room_resumes_no_job_that_its_user_has_paused() -> None:
    assert step(PAUSED_JOB, RoomAgain(5.0)) == (PAUSED_JOB, ())
    theirs = after(DISK_JOB, Pause(5.0))
    assert (theirs.status, theirs.waits_for_disk) == (PAUSED, None)
    assert after(theirs, RoomAgain(6.0)) == theirs
    both = after(after(RUNNING_JOB, TrainerRuns(5.0, 3, FULL)), Pause(6.0))
    assert after(after(both, TrainerEnded(7.0, 3, PAUSED)), RoomAgain(8.0)).status == PAUSED
    assert after(after(theirs, Resume(9.0)), RoomAgain(10.0)).status == QUEUED


def test_what_waits_for_the_disk_goes_on_waiting_though_its_user_resumes_it() -> None:
    assert step(DISK_JOB, Resume(5.0)) == (DISK_JOB, ())
    asked = after(RUNNING_JOB, TrainerRuns(5.0, 3, FULL))
    assert after(after(asked, Pause(6.0)), Resume(7.0)) == asked


def test_a_disk_that_has_room_before_the_job_has_paused_pauses_none() -> None:
    asked = after(RUNNING_JOB, TrainerRuns(5.0, 3, FULL))
    withdrawn = after(asked, TrainerRuns(6.0, 3))
    assert withdrawn == RUNNING_JOB
    assert is_claimable(after(withdrawn, TrainerEnded(7.0, 3, PAUSED)), 7.0)  # it had heard of the pause alone
    assert deeds(asked, TrainerMissing(6.0, 3)) == [Do.START]
    assert after(asked, TrainerEnded(6.0, 3, SUCCEEDED)).waits_for_disk is None


@pytest.mark.parametrize("flag", ["cancel_requested", "pause_requested"])
def test_what_a_user_wants_comes_before_the_disk(flag: str) -> None:
    wanted: Any = replace(RUNNING_JOB, **{flag: True})  # type: ignore[arg-type]
    assert step(wanted, TrainerRuns(5.0, 3, FULL)) == step(wanted, TrainerRuns(5.0, 3))
    assert step(wanted, TrainerMissing(5.0, 3, FULL)) == step(wanted, TrainerMissing(5.0, 3))
    assert step(TRAINED_JOB, TrainerMissing(5.0, 3, FULL)) == (TRAINED_JOB, ())  # needs no checkpoint any more


def test_a_pause_that_comes_too_late_is_forgotten_and_refused_afterwards() -> None:
    trained = after(after(RUNNING_JOB, Pause(5.0)), TrainerEnded(6.0, 3, SUCCEEDED))
    assert (trained.status, trained.trained, trained.pause_requested) == (RUNNING, True, False)
    with pytest.raises(InvalidTransition, match="nothing is left to train"):
        step(trained, Pause(7.0))
    with pytest.raises(InvalidTransition, match="asked to cancel"):
        step(replace(RUNNING_JOB, cancel_requested=True), Pause(7.0))


def test_a_withdrawn_pause_is_none() -> None:
    withdrawn = after(after(RUNNING_JOB, Pause(5.0)), Resume(6.0))
    assert withdrawn == RUNNING_JOB
    ended = after(withdrawn, TrainerEnded(7.0, 3, PAUSED))  # it had heard of the pause alone
    assert ended.status == RUNNING
    assert is_claimable(ended, 7.0)


@pytest.mark.parametrize("state", [QUEUED_JOB, RUNNING_JOB])
def test_what_is_not_paused_need_not_be_resumed(state: JobState) -> None:
    assert step(state, Resume(5.0)) == (state, ())


def test_a_lost_trainer_gives_the_lease_back_until_it_has_been_lost_too_often() -> None:
    lost, effects = step(RUNNING_JOB, TrainerLost(5.0, 3, "gone"))
    assert (lost.status, is_claimable(lost, 5.0), Do.KILL in effects) == (RUNNING, True, True)
    again = after(lost, Claim(6.0, "two", 10.0))
    assert (again.lease_owner, again.lease_epoch, again.lease_expires_at, again.started_at) == ("two", 4, 16.0, 1.0)
    failed = after(RUNNING_JOB, TrainerLost(5.0, 3, "gone", ERROR))
    assert (failed.status, failed.error) == (FAILED, ERROR)


def test_a_job_that_is_not_trained_does_not_succeed() -> None:
    for event in (End(5.0, 3, SUCCEEDED), RegistrationBegins(5.0, 3)):
        with pytest.raises(InvalidTransition):
            step(RUNNING_JOB, event)


@given(st.sampled_from(STATUSES), st.one_of(st.none(), st.floats(0, 10)), st.floats(0, 10))
def test_a_live_lease_is_never_claimed_from_its_owner(status: str, expires: float | None, now: float) -> None:
    state = JobState("job_1", status, lease_owner="one", lease_expires_at=expires)
    expected = status == QUEUED or (status == RUNNING and (expires is None or expires <= now))
    assert is_claimable(state, now) == expected
    if expected:
        assert after(state, Claim(now, "two", 5.0)).lease_owner == "two"
    else:
        with pytest.raises(InvalidTransition):
            step(state, Claim(now, "two", 5.0))


def test_only_the_owner_renews() -> None:
    assert after(RUNNING_JOB, Renew(50.0, "one", 60.0)).lease_expires_at == 110.0
    assert after(RUNNING_JOB, Renew(50.0, "two", 60.0)) == RUNNING_JOB
    assert after(QUEUED_JOB, Renew(50.0, "one", 60.0)) == QUEUED_JOB


def test_events_are_data_that_says_what_happened() -> None:
    told: Any = step(RUNNING_JOB, End(5.0, 3, FAILED, ERROR))[1][0]
    assert (told.event.level, told.event.message) == ("error", "broken")
    assert told.event.data == {"status": FAILED, "error": ERROR}


def test_the_workers_asked_for_last_are_the_trainers_until_nothing_is_left_to_train() -> None:
    queued = after(QUEUED_JOB, Scale(1.0, 3))
    assert (queued.status, queued.workers_requested) == (QUEUED, 3)
    running = after(after(RUNNING_JOB, Scale(1.0, 3)), Scale(2.0, 2))
    assert deeds(running, TrainerRuns(3.0, 3)) == [Do.SCALE]
    assert deeds(after(running, Pause(3.0)), TrainerRuns(4.0, 3)) == [Do.PAUSE]
    assert step(running, Scale(5.0, 2)) == (running, ())
    with pytest.raises(InvalidTransition):
        step(TRAINED_JOB, Scale(6.0, 2))
