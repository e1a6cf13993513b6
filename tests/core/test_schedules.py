import math

import pytest

from core.schedules import SCHEDULES, ScheduleSpec, learning_rate, scaled_rate


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


def test_step_drops_at_each_interval():
    assert rates(ScheduleSpec("step", factor=0.5, every=0.25), 8) == [
        0.5,
        0.5,
        0.25,
        0.25,
        0.125,
        0.125,
        0.0625,
        0.0625,
    ]
    assert rates(ScheduleSpec("step", factor=0.5, every=0.1), 10) == pytest.approx([0.5**k for k in range(1, 11)])


def test_exponential_and_inverse_by_hand():
    assert rates(ScheduleSpec("exponential", factor=0.01), 4) == pytest.approx(
        [0.5, 0.5 * 0.1**0.5, 0.05, 0.5 * 0.1**1.5]
    )
    assert rates(ScheduleSpec("inverse", factor=0.2), 4) == pytest.approx([0.5, 0.25, 0.5 / 3, 0.125])
    for name in ("exponential", "inverse"):
        assert rates(ScheduleSpec(name, factor=0.2), 10_000)[-1] == pytest.approx(0.1, rel=1e-3)


def test_one_cycle_rises_from_a_25th_and_falls():
    found = rates(ScheduleSpec("one_cycle"), 100)
    assert found[0] == pytest.approx(0.02)
    assert found[30] == 0.5
    assert found[:31] == sorted(found[:31])
    assert found[30:] == sorted(found[30:], reverse=True)
    assert found[65] == pytest.approx(0.25)
    assert found[-1] < 1e-3


def test_the_linear_scaling_rule():
    assert scaled_rate(0.1, 1024, 256) == 0.4
    assert scaled_rate(0.1, 32, 256) == 0.0125
