"""What is decided when a stretch of steps was cut short: all aggregators commit a step, or none."""

import pytest

from worker.errors import RemoteLost
from worker.plan import Reduced
from worker.wiring import Standing, settle


def standing(committed: int, reduced_step: int, number: int = 0) -> Standing:
    return Standing(committed, reduced_step, Reduced((float(number),)) if reduced_step else None)


@pytest.mark.parametrize("reduced_steps", [(7, 7), (7, 8), (8, 8), (0, 0)])
def test_where_nobody_has_committed_the_step_nobody_does(reduced_steps: tuple[int, int]) -> None:
    assert settle([standing(7, step) for step in reduced_steps]) == ((), ())


def test_alone_there_is_nothing_to_settle() -> None:
    assert settle([standing(7, 8)]) == ((), ())


@pytest.mark.parametrize("late", [(0,), (1,), (0, 2), (1, 2)])
def test_who_is_late_commits_what_the_others_have_committed(late: tuple[int, ...]) -> None:
    standings = [standing(7 if k in late else 8, 8, k) for k in range(3)]
    assert settle(standings) == (late, tuple(Reduced((float(k),)) for k in range(3)))


@pytest.mark.parametrize(
    "standings",
    [
        [standing(8, 8), standing(6, 8)],  # two steps behind
        [standing(8, 8), standing(7, 7)],  # it has not reduced what the other says it has heard
        [standing(8, 9), standing(7, 8)],  # what the other has reduced is not known any more
        [standing(8, 8), standing(7, 0)],
    ],
)
def test_what_cannot_be_is_not_mended(standings: list[Standing]) -> None:
    with pytest.raises(RemoteLost, match="not at the same step"):
        settle(standings)
