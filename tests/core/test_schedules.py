import math

import pytest

from core.schedules import SCHEDULES, ScheduleSpec, learning_rate


def rates(spec, steps, base=0.5):
    return [learning_rate(spec, base, step, steps) for step in range(1, steps + 1)]


def test_constant():
    assert rates(ScheduleSpec(), 3) == [0.5, 0.5, 0.5]


def test_cosine_by_hand():
    expected = [0.5, 0.25 * (1 + math.cos(math.pi / 4)), 0.25, 0.25 * (1 + math.cos(3 * math.pi / 4))]
    assert rates(ScheduleSpec("cosine"), 4) == pytest.approx(expected, rel=1e-15)


def test_warmup_rises_linearly_to_the_base_rate():
    found = rates(ScheduleSpec("cosine", 0.25), 16)
    assert found[:4] == [0.125, 0.25, 0.375, 0.5]
    assert found[4] == 0.5
    assert found[4:] == sorted(found[4:], reverse=True)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 3, 100])
def test_rates_are_positive_and_at_most_the_base_rate(name, warmup, steps):
    assert all(0 < rate <= 0.5 for rate in rates(ScheduleSpec(name, warmup), steps))


def test_beyond_the_last_step_the_rate_stays():
    spec = ScheduleSpec("cosine", 0.1)
    assert learning_rate(spec, 1.0, 12, 10) == learning_rate(spec, 1.0, 10, 10)
