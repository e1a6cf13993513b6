"""The model of the exchange over nodes: what must hold whatever the parts are."""

from dataclasses import replace

import pytest

from benchmarks.node_model import MODES, NODES, Parts, examples_per_second, step_s
from benchmarks.nodes import lower_bound

PARTS = Parts(1e-3, 64, 1e-4, 1e-3, 5e-3, 5e9, 235_146, 4, 1.25e9, 5e-5)


def test_one_node_exchanges_nothing() -> None:
    assert step_s(PARTS, 1) == PARTS.gradient_s


@pytest.mark.parametrize("mode", MODES)
def test_more_nodes_make_no_step_shorter(mode: str) -> None:
    times = [step_s(PARTS, nodes, **MODES[mode]) for nodes in NODES]
    assert times == sorted(times)


def test_modes_help_where_the_link_is_what_is_short_of() -> None:
    slow = replace(PARTS, link_bytes_s=1e7)
    sync, half, local = (examples_per_second(slow, 10, mode) for mode in MODES)
    assert 1.3 * sync < half < 2.1 * sync  # half the bytes, and fewer aggregators for them
    assert local == pytest.approx(16 * sync, rel=0.3)


def test_in_the_end_the_trainers_calls_are_the_bound() -> None:
    quick = replace(PARTS, link_bytes_s=1e15, sum_bytes_s=1e15)
    assert step_s(quick, 1000) == pytest.approx((1000 + 2 * 4) * PARTS.call_s)


def test_the_lower_bound_counts_what_must_cross() -> None:
    assert lower_bound(1) == 0
    assert lower_bound(2) == 2 * 235_146 * 4
