"""Early stopping as a decision: the best epoch, and when to give up."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.plan import EarlyStopping
from worker.stopping import StoppingState, decide


def judged(rule: EarlyStopping, losses: Sequence[float]) -> tuple[StoppingState, list[int], int | None]:
    """The last state, the epochs that were the best when they came, the epoch after which training stopped."""
    state, bests = StoppingState(), []
    for epoch, loss in enumerate(losses, start=1):
        decision = decide(rule, state, epoch, loss)
        state = decision.state
        if decision.is_best:
            bests.append(epoch)
        if decision.stop:
            return state, bests, epoch
    return state, bests, None


@pytest.mark.parametrize(
    ("losses", "bests", "stopped"),
    [
        ([5, 4, 3, 2], [1, 2, 3, 4], None),
        ([5, 6, 7], [1], 3),
        ([5, 6, 4, 5, 6, 1], [1, 3], 5),
        ([5, 5, 5], [1], 3),  # as good is not better
        ([5, 6], [1], None),
    ],
)
def test_patience_is_counted_from_the_best_epoch(losses: list[float], bests: list[int], stopped: int | None) -> None:
    assert judged(EarlyStopping(patience=2), losses)[1:] == (bests, stopped)


def test_gains_below_the_minimum_do_not_count_and_do_not_add_up_unseen() -> None:
    rule = EarlyStopping(patience=3, minimum_gain=0.5)
    assert judged(rule, [5, 4.6, 4.5, 4.4])[1:] == ([1, 4], None)  # 4.4 is 0.6 below the best, epoch 1's
    assert judged(rule, [5, 4.9, 4.8, 4.7])[1:] == ([1], 4)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40), st.integers(1, 6))
def test_the_best_epoch_is_the_first_of_the_lowest_loss_so_far(losses: list[float], patience: int) -> None:
    state, bests, stopped = judged(EarlyStopping(patience), losses)
    seen = losses[:stopped]
    assert state == StoppingState(seen.index(min(seen)) + 1, min(seen))
    assert bests[-1] == state.best_epoch
    if stopped is not None:
        assert stopped == bests[-1] + patience
    else:
        assert len(seen) < bests[-1] + patience
