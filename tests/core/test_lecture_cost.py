"""The lecture, fourth part: what a step costs, counted in multiplications of its matrix products, not in time."""

from collections.abc import Callable

import numpy as np
import pytest

from core import operations
from core.network import Network, NetworkSpec, initial_parameters, summary

ROWS = 64


@pytest.fixture
def flops(monkeypatch) -> Callable[[NetworkSpec], tuple[int, int]]:
    """Counts a step's floating-point operations in products of matrices: (forward, backward)."""
    counted = 0
    multiply = operations.multiply

    def counting(a, b, *arguments):
        nonlocal counted
        counted += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        multiply(a, b, *arguments)

    def count(spec: NetworkSpec) -> tuple[int, int]:
        nonlocal counted
        monkeypatch.setattr(operations, "multiply", counting)
        network, parameters = Network(spec, ROWS), initial_parameters(spec, 0)
        features, targets = np.zeros((ROWS, spec.inputs), np.float32), np.zeros(ROWS, np.int32)
        counted = 0
        network.predict(parameters, features)
        forward, counted = counted, 0
        network.loss_and_gradient(parameters, np.empty_like(parameters), features, targets)
        return forward, counted - forward

    return count


def test_forward_costs_two_operations_a_weight_a_row(flops):
    """100-50-10 has 5,500 weights; each is used in one multiplication and one addition a row."""
    forward, _ = flops(NetworkSpec(100, 10, (50,)))
    assert forward == 2 * 5500 * ROWS


def test_backward_costs_twice_the_forward_less_the_signal_that_nobody_needs(flops):
    """Each layer is multiplied for its weights' gradient and for its input's error signal; the first needs no latter.

    100-50-10: 2 * 5,500 + 2 * 500 = 12,000 operations a row.
    """
    _, backward = flops(NetworkSpec(100, 10, (50,)))
    assert backward == (2 * 5500 + 2 * 500) * ROWS


@pytest.mark.parametrize(("depth", "ratio"), [(1, 1.0), (10, 1.9), (100, 1.99)])
def test_forward_to_backward_is_one_to_two_in_a_deep_network(flops, depth, ratio):
    """With L equal layers (2L - 1) / L: the textbook's 2 is the limit of many layers."""
    forward, backward = flops(NetworkSpec(8, 8, (8,) * (depth - 1)))
    assert backward / forward == pytest.approx(ratio, rel=1e-12)


def test_cost_is_linear_in_layers(flops):
    """Every further hidden layer adds the same."""
    costs = [sum(flops(NetworkSpec(16, 4, (16,) * depth))) for depth in range(1, 7)]
    assert set(np.diff(costs)) == {6 * 16 * 16 * ROWS}


def test_cost_is_quadratic_in_width(flops):
    """a n^2 + b n, with a = 6 operations for each of the hidden layers between hidden layers: n = 8, 16, 24, 32."""
    widths = np.array([8, 16, 24, 32])
    costs = np.array([sum(flops(NetworkSpec(10, 5, (int(n),) * 3))) for n in widths]) / ROWS
    np.testing.assert_allclose(costs, 6 * 2 * widths**2 + (4 * 10 + 6 * 5) * widths, rtol=1e-12)


def test_the_summary_says_what_is_counted(flops):
    spec = NetworkSpec(20, 3, (12, 7))
    assert sum(flops(spec)) == ROWS * sum(row["flops"] for row in summary(spec))
