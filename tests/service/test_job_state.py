"""A job's life, walked at random: only allowed pairs, a final status stays, asking to cancel twice is asking once."""

from hypothesis import given
from hypothesis import strategies as st

from service.job_state import (
    ALLOWED,
    CANCELLED,
    FINAL,
    PAUSED,
    QUEUED,
    RUNNING,
    STATUSES,
    is_allowed,
    is_claimable,
    on_cancel,
)

statuses = st.sampled_from(STATUSES)


def test_no_way_leads_out_of_a_final_status_and_one_leads_out_of_every_other() -> None:
    starts = {current for current, _ in ALLOWED}
    assert starts == set(STATUSES) - FINAL
    assert all(current != following for current, following in ALLOWED)


def test_every_status_is_reached_from_queued_and_ends_are_reached_from_every_status() -> None:
    reached = {QUEUED}
    for _ in STATUSES:
        reached |= {following for current, following in ALLOWED if current in reached}
    assert reached == set(STATUSES)
    for status in set(STATUSES) - FINAL:
        assert is_allowed(status, CANCELLED)


@given(st.lists(st.one_of(statuses, st.just("cancel please")), max_size=30))
def test_any_walk_keeps_the_rules(wishes: list[str]) -> None:
    """The walk obeys the decisions as the store does: a wish that is not allowed changes nothing."""
    status, asked = QUEUED, False
    for wish in wishes:
        before = status
        if wish == "cancel please":
            decision = on_cancel(status, asked)
            assert (decision is None) == (status in FINAL - {CANCELLED})
            if decision is not None:
                asked = asked or decision.set_flag
                status = decision.status or status
        elif is_allowed(status, wish):
            status = wish
        assert before == status or (before, status) in ALLOWED
        assert before not in FINAL or status == before


@given(statuses, st.booleans())
def test_asking_to_cancel_again_changes_nothing_more(status: str, asked: bool) -> None:
    first = on_cancel(status, asked)
    if first is None:
        return
    again = on_cancel(first.status or status, asked or first.set_flag)
    assert again is not None
    assert again.status is None
    assert not again.set_flag


def test_a_job_that_nobody_works_on_is_cancelled_at_once_and_a_running_one_is_asked() -> None:
    for status in (QUEUED, PAUSED):
        decision = on_cancel(status, False)
        assert decision is not None
        assert decision.status == CANCELLED
    running = on_cancel(RUNNING, False)
    assert running is not None
    assert (running.status, running.set_flag) == (None, True)


@given(statuses, st.one_of(st.none(), st.floats(0, 10)), st.floats(0, 10))
def test_a_live_lease_is_never_claimed_from_its_owner(status: str, expires: float | None, now: float) -> None:
    claimable = is_claimable(status, expires, now)
    assert claimable == (status == QUEUED or (status == RUNNING and (expires is None or expires < now)))
