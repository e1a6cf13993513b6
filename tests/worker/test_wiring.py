"""What is decided when a stretch of steps was cut short: all aggregators commit a step, or none."""

import pytest

from worker.errors import RemoteLost
from worker.plan import Reduced
from worker.wiring import Standing, settle


def standing(committed: int, *reduced: int, number: int = 0) -> Standing:
    """Of aggregator `number`, which has reduced those steps last."""
    return Standing(committed, tuple((step, Reduced((float(number), float(step)))) for step in reduced))


@pytest.mark.parametrize("reduced", [((6, 7), (6, 7)), ((6, 7), (7, 8)), ((7, 8), (7, 8)), ((), ())])
def test_where_nobody_has_committed_the_step_nobody_does(reduced: tuple[tuple[int, ...], ...]) -> None:
    assert settle([standing(7, *steps) for steps in reduced]) == ((), ())


def test_alone_there_is_nothing_to_settle() -> None:
    assert settle([standing(7, 8)]) == ((), ())


@pytest.mark.parametrize("ahead", [(7, 8), (8, 9), (8, 8)])  # also one that has gone on, or reduced the step twice
@pytest.mark.parametrize("late", [(0,), (1,), (0, 2), (1, 2)])
def test_who_is_late_commits_what_the_others_have_committed(late: tuple[int, ...], ahead: tuple[int, int]) -> None:
    standings = [standing(7, 7, 8, number=k) if k in late else standing(8, *ahead, number=k) for k in range(3)]
    assert settle(standings) == (late, tuple(Reduced((float(k), 8.0)) for k in range(3)))


@pytest.mark.parametrize(
    "standings",
    [
        [standing(8, 8), standing(6, 8)],  # two steps behind
        [standing(8, 8), standing(7, 7)],  # it has not reduced what the other says it has heard
        [standing(8, 9, 10), standing(7, 8)],  # what the other has reduced is not known any more
        [standing(8, 8), standing(7)],
    ],
)
def test_what_cannot_be_is_not_mended(standings: list[Standing]) -> None:
    with pytest.raises(RemoteLost, match="not at the same step"):
        settle(standings)
