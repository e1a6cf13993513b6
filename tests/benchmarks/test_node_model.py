"""The model of the exchange over nodes: what must hold whatever the parts are."""

from dataclasses import replace

import pytest

from benchmarks.node_model import MODES, NODES, Parts, examples_per_second, measured_links, step_s
from benchmarks.nodes import lower_bound

PARTS = Parts(1e-3, 64, 2e-5, 2e9, 5e9, 235_146, 4, 1.25e9, 5e-5)


def test_one_node_exchanges_nothing() -> None:
    assert step_s(PARTS, 1) == PARTS.gradient_s


@pytest.mark.parametrize("mode", MODES)
def test_more_nodes_make_no_step_shorter(mode: str) -> None:
    times = [step_s(PARTS, nodes, **MODES[mode]) for nodes in NODES]
    assert times == sorted(times)


def test_modes_help_where_the_link_is_what_is_short_of() -> None:
    slow = replace(PARTS, link_bytes_s=1e7)
    sync, half, local = (examples_per_second(slow, 10, mode) for mode in MODES)
    assert 1.2 * sync < half < 1.4 * sync  # gradients are half of what travels
    assert local == pytest.approx(16 * sync, rel=0.3)


def test_in_the_end_the_links_of_the_aggregators_are_the_bound() -> None:
    share = 235_146  # bytes: a quarter of the vector
    assert step_s(PARTS, 1000) == pytest.approx(2 * 999 * share / PARTS.link_bytes_s, rel=0.15)


def test_a_link_faster_than_the_sockets_is_of_no_use() -> None:
    assert step_s(replace(PARTS, link_bytes_s=1e15), 10) == step_s(replace(PARTS, link_bytes_s=2e9), 10)


def test_the_parts_can_be_measured() -> None:
    hop_s, copy_bytes_s = measured_links(50_000, count=20)
    assert 0 < hop_s < 1
    assert copy_bytes_s > 1e6


def test_the_lower_bound_counts_what_must_cross() -> None:
    assert lower_bound(1) == 0
    assert lower_bound(2) == 2 * 235_146 * 4
