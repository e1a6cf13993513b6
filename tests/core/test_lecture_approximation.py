"""The lecture, sixth part: what layers can represent, by weights put in by hand, and what descent finds by itself."""

import numpy as np
import pytest

from core.network import Network, NetworkSpec, initial_parameters
from core.optimizers import OptimizerSpec, make_optimizer

XOR = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float64)
XOR_TARGETS = np.array([0, 1, 1, 0], np.int32)
POINTS = np.linspace(-np.pi, np.pi, 256)[:, None]


def put_in(spec, **views):
    """A network and its parameters with the given arrays (named layer1_weights, ...) put in."""
    network = Network(spec, 512)
    flat = np.zeros(network.layout.size)
    for name, view in network.layout.views(flat).items():
        view[...] = views[name.replace(".", "_")]
    return network, flat


def descend(spec, optimizer_spec, features, targets, steps):
    """A network and its parameters after `steps` on all rows, at a rate that falls to 0 by half a cosine."""
    network, optimizer = Network(spec, len(features)), make_optimizer(optimizer_spec)
    parameters, spare = initial_parameters(spec, 0), initial_parameters(spec, 0)
    gradient = np.empty_like(parameters)
    state = [np.zeros_like(parameters) for _ in range(optimizer.state_vectors)]
    spare_state = [np.zeros_like(parameters) for _ in state]
    for step in range(1, steps + 1):
        network.loss_and_gradient(parameters, gradient, features, targets)
        gradient /= len(features)
        rate = optimizer_spec.learning_rate * (1 + np.cos(np.pi * step / steps)) / 2
        optimizer.update(step, rate, parameters, gradient, state, spare, spare_state)
        parameters, spare, state, spare_state = spare, parameters, spare_state, state
    return network, parameters


def test_xor_by_hand():
    """h1 = relu(x1 + x2), h2 = relu(x1 + x2 - 1): xor = h1 - 2 h2."""
    spec = NetworkSpec(2, 1, (2,), loss="squared_error", dtype="float64")
    network, parameters = put_in(
        spec, layer1_weights=np.ones((2, 2)), layer1_bias=[0, -1], layer2_weights=[[1], [-2]], layer2_bias=0
    )
    np.testing.assert_array_equal(network.predict(parameters, XOR)[:, 0], XOR_TARGETS)


def test_one_layer_cannot_do_xor():
    """The best line leaves all four rows at even odds: loss ln 2, weights 0 (the loss is convex: it is the minimum)."""
    spec = NetworkSpec(2, 2, (), dtype="float64")
    network, parameters = descend(spec, OptimizerSpec("sgd", 1.0, momentum=0.9), XOR, XOR_TARGETS, 500)
    np.testing.assert_allclose(network.predict(parameters, XOR), 0.5, atol=1e-6)


def test_descent_learns_xor():
    spec = NetworkSpec(2, 2, (4,), "tanh", dtype="float64")
    network, parameters = descend(spec, OptimizerSpec("sgd", 0.5, momentum=0.9), XOR, XOR_TARGETS, 500)
    chances = network.predict(parameters, XOR)[np.arange(4), XOR_TARGETS]
    assert chances.min() > 0.99


def test_a_steep_unit_is_a_step():
    """sigma(k (x - s)) is within 1/1000 of the step at s where |x - s| > ln(999) / k."""
    spec = NetworkSpec(1, 1, (1,), "sigmoid", loss="squared_error", dtype="float64")
    network, parameters = put_in(
        spec, layer1_weights=200, layer1_bias=-200 * 0.5, layer2_weights=1, layer2_bias=0
    )  # fmt: skip
    error = np.abs(network.predict(parameters, POINTS) - (POINTS > 0.5))
    assert error[np.abs(POINTS - 0.5) > np.log(999) / 200].max() <= 1e-3


@pytest.mark.parametrize("units", [16, 64])
def test_one_hidden_layer_of_steps_approximates_sin(units):
    """A staircase of `units` steps, each as high as sin rises over its interval, is off by half a step's rise.

    The slope of sin is at most 1: the error is at most half the interval, pi / units.
    """
    spec = NetworkSpec(1, 1, (units,), "sigmoid", loss="squared_error", dtype="float64")
    edges = np.linspace(-np.pi, np.pi, units + 1)
    network, parameters = put_in(
        spec,
        layer1_weights=1e6,
        layer1_bias=-1e6 * (edges[:-1] + edges[1:]) / 2,
        layer2_weights=np.diff(np.sin(edges))[:, None],
        layer2_bias=0,
    )
    error = np.abs(network.predict(parameters, POINTS) - np.sin(POINTS)).max()
    assert error <= np.pi / units


def test_descent_approximates_sin_with_one_hidden_layer():
    spec = NetworkSpec(1, 1, (16,), "tanh", loss="squared_error", dtype="float64")
    network, parameters = descend(spec, OptimizerSpec("adam", 0.1), POINTS, np.sin(POINTS), 4000)
    assert np.abs(network.predict(parameters, POINTS) - np.sin(POINTS)).max() < 0.02


def test_descent_approximates_a_step_with_one_hidden_layer():
    """A continuous network cannot follow a jump: held to it are the mean error, and the largest at some distance."""
    target = (POINTS > 0.3).astype(np.float64)
    spec = NetworkSpec(1, 1, (16,), "tanh", loss="squared_error", dtype="float64")
    network, parameters = descend(spec, OptimizerSpec("adam", 0.1), POINTS, target, 4000)
    error = np.abs(network.predict(parameters, POINTS) - target)
    assert error.mean() < 0.02
    assert error[np.abs(POINTS - 0.3) > 0.1].max() < 0.1


# A square of height 1 on a plain of 0: discontinuous along its whole border.
PLANE = np.random.default_rng(0).uniform(-2, 2, (400, 2))
SQUARE = (np.abs(PLANE).max(axis=1) < 1).astype(np.float64)[:, None]


def test_two_hidden_layers_make_a_square_by_hand():
    """The first layer draws the four sides, the second says whether a point is inside all of them: 4 > 3.5."""
    spec = NetworkSpec(2, 1, (4, 1), "sigmoid", loss="squared_error", dtype="float64")
    k = 1e4
    network, parameters = put_in(
        spec,
        layer1_weights=k * np.array([[1, -1, 0, 0], [0, 0, 1, -1]]),
        layer1_bias=k,
        layer2_weights=k,
        layer2_bias=-3.5 * k,
        layer3_weights=1,
        layer3_bias=0,
    )
    clear = np.abs(np.abs(PLANE) - 1).min(axis=1) > 1e-3
    error = np.abs(network.predict(parameters, PLANE) - SQUARE)[clear]
    assert clear.sum() > 350
    assert error.max() < 1e-6


def test_descent_approximates_a_discontinuous_function_with_two_hidden_layers():
    spec = NetworkSpec(2, 1, (16, 16), "tanh", loss="squared_error", dtype="float64")
    network, parameters = descend(spec, OptimizerSpec("adam", 0.1), PLANE, SQUARE, 4000)
    found = network.predict(parameters, PLANE)
    assert np.abs(found - SQUARE).mean() < 0.02
    assert ((found > 0.5) == SQUARE).mean() > 0.99
