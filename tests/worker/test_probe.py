"""What `workers: auto` decides, from figures."""

import pytest

from worker.probe import LONG_STEP_S, MARGIN, MEASURE_S, WORTH_S, Choice, Probe, choose


@pytest.mark.parametrize(
    ("all_rate", "one_rate", "workers"),
    [(1000.0, 4000.0, 1), (4000.0, 1000.0, 4), (1000.0, 1000.0, 1), (1000.0 * MARGIN, 1000.0, 1), (1100.0, 1000.0, 4)],
)
def test_what_was_faster_is_chosen_and_one_where_it_makes_no_odds(
    all_rate: float, one_rate: float, workers: int
) -> None:
    found = choose(4, all_rate, one_rate)
    assert (found.workers, found.rates) == (workers, {4: all_rate, 1: one_rate})
    assert found.reason == f"{all_rate:,.0f} examples/s with 4, {one_rate:,.0f} with one"


def probed(rates: dict[int, float], left: float = 1000.0, steps: int = 50) -> tuple[Choice, list[int]]:
    """The choice where `rates` are the examples a second, and with how many workers each chunk was done."""
    probe, chunks = Probe(4), []
    while probe.choice is None:
        workers = probe.wanted
        chunks.append(workers)
        probe.add(workers, steps, round(0.1 * rates[workers]), 0.1, left)
        assert len(chunks) < 100
    assert probe.wanted == probe.choice.workers
    return probe.choice, chunks


@pytest.mark.parametrize(("rates", "workers"), [({4: 1000.0, 1: 3000.0}, 1), ({4: 3000.0, 1: 1000.0}, 4)])
def test_both_are_measured_after_a_first_chunk_each(rates: dict[int, float], workers: int) -> None:
    choice, chunks = probed(rates)
    assert (choice.workers, choice.rates) == (workers, pytest.approx(rates))
    each = 1 + round(MEASURE_S / 0.1)
    assert chunks == [4] * each + [1] * each


def test_a_job_that_is_nearly_over_is_left_alone() -> None:
    choice, chunks = probed({4: 1000.0}, left=WORTH_S - 1)
    assert (choice.workers, choice.rates, chunks) == (4, {}, [4, 4])
    assert "only 4.0 s are left" in choice.reason


def test_long_steps_are_not_tried_with_one_worker() -> None:
    choice, chunks = probed({4: 1000.0}, steps=1)
    assert 0.1 > LONG_STEP_S
    assert (choice.workers, choice.rates, chunks) == (4, {}, [4, 4])
    assert "a step takes 100 ms" in choice.reason


def test_one_worker_is_no_choice() -> None:
    choice = Probe(1).choice
    assert choice is not None
    assert (choice.workers, choice.rates) == (1, {})


def test_what_was_measured_beside_a_loss_does_not_count() -> None:
    probe = Probe(2)
    probe.add(2, 50, 100, 0.1, 1000.0)  # the first
    probe.add(2, 50, 100, 0.1, 1000.0)
    for _ in range(9):
        probe.add(1, 50, 1, 0.1, 1000.0)  # one has died
    assert (probe.wanted, probe.choice) == (2, None)
    for _ in range(3):
        assert probe.wanted == 2
        probe.add(2, 50, 100, 0.1, 1000.0)
    assert probe.wanted == 1
    for _ in range(3):
        assert probe.choice is None
        probe.add(1, 50, 50, 0.1, 1000.0)
    assert probe.choice is not None
    assert probe.choice.rates == pytest.approx({2: 1000.0, 1: 500.0})
