"""The lecture, fifth part: error signals vanish in deep sigmoid networks, by how much, and what Glorot's rule does.

Going back through a layer, a signal is multiplied by W^T and by the slopes of the units, so that its mean square is
multiplied by  n Var(w) E[slope^2].  With Glorot's n Var(w) = 1. With the naive uniform +-1/sqrt(n), n Var(w) = 1/3.
A sigmoid's slope is at most 1/4; a tanh's is 1 in its middle.
"""

import numpy as np
import pytest

from core.network import Network, NetworkSpec, initial_parameters
from core.parameters import ParameterLayout

DEPTH, WIDTH, ROWS = 12, 128, 16


def weights_by(layout: ParameterLayout, scale: float) -> np.ndarray:
    """Parameters with uniform weights of n Var(w) = scale^2 in layers of n inputs, biases 0."""
    rng, flat = np.random.default_rng(0), np.zeros(layout.size)
    for name, view in layout.views(flat).items():
        if name.endswith("weights"):
            bound = scale * np.sqrt(3 / len(view))
            view[...] = rng.uniform(-bound, bound, view.shape)
    return flat


def signal_sizes(spec: NetworkSpec, parameters: np.ndarray) -> np.ndarray:
    """The root mean square error signal at each hidden layer's net inputs, first layer first.

    A row's gradient by the biases is its error signal.
    """
    rng, network = np.random.default_rng(1), Network(spec, 1)
    squares = np.zeros(DEPTH)
    gradient = np.empty_like(parameters)
    views = network.layout.views(gradient)
    for _ in range(ROWS):
        features = rng.normal(size=(1, spec.inputs))
        network.loss_and_gradient(parameters, gradient, features, rng.normal(size=(1, spec.outputs)))
        squares += [(views[f"layer{k}.bias"] ** 2).mean() for k in range(1, DEPTH + 1)]
    return np.sqrt(squares / ROWS)


def factor_a_layer(activation: str, scale: float) -> float:
    """By what a signal is multiplied on its way back through one layer, on average over the inner ones."""
    spec = NetworkSpec(WIDTH, WIDTH, (WIDTH,) * DEPTH, activation, loss="squared_error", dtype="float64")
    sizes = signal_sizes(spec, weights_by(Network(spec, 1).layout, scale))
    return float((sizes[2] / sizes[-1]) ** (1 / (DEPTH - 3)))


def test_naive_weights_lose_six_sevenths_of_a_signal_in_every_sigmoid_layer():
    """sqrt(1/3) / 4 = 0.144: after 12 layers less than a billionth is left to learn from."""
    factor = factor_a_layer("sigmoid", np.sqrt(1 / 3))
    assert factor == pytest.approx(np.sqrt(1 / 3) / 4, rel=0.05)
    assert factor**12 < 1e-9


def test_glorots_weights_leave_only_the_sigmoids_own_quarter():
    """The weights lose nothing any more; the slope of 1/4 remains. (It is a little less off the middle.)"""
    assert factor_a_layer("sigmoid", 1.0) == pytest.approx(1 / 4, rel=0.1)


def test_with_tanh_glorots_weights_nearly_keep_the_signal_and_naive_ones_do_not():
    """In its middle, where small activations leave it, a tanh has the slope 1: sqrt(1/3) a layer for naive weights."""
    assert factor_a_layer("tanh", np.sqrt(1 / 3)) == pytest.approx(np.sqrt(1 / 3), rel=0.06)
    assert 0.85 < factor_a_layer("tanh", 1.0) < 1.0


def test_larger_weights_saturate_instead():
    """sqrt(n Var(w)) = 40 puts net inputs some 40 from 0, where a sigmoid's slope, e^-40, teaches nothing."""
    spec = NetworkSpec(WIDTH, WIDTH, (WIDTH,), "sigmoid", loss="squared_error", dtype="float64")
    layout = Network(spec, 1).layout
    features = np.random.default_rng(1).normal(size=(64, WIDTH))
    net = features @ layout.views(weights_by(layout, 40.0))["layer1.weights"]
    assert net.std() == pytest.approx(40, rel=0.1)
    assert np.median((1 / (2 * np.cosh(net / 2))) ** 2) < 1e-9


def test_the_engines_initializers_are_the_rules_that_are_derived():
    """Variance 2 / (inputs + units) for Glorot's and 2 / inputs for He's, which makes up for what ReLU cuts."""
    for activation, variance in (("sigmoid", 2 / (400 + 200)), ("tanh", 2 / (400 + 200)), ("relu", 2 / 400)):
        spec = NetworkSpec(400, 1, (200,), activation, dtype="float64")
        weights = Network(spec, 1).layout.views(initial_parameters(spec, 0))["layer1.weights"]
        assert weights.var() == pytest.approx(variance, rel=0.02)
        assert weights.mean() == pytest.approx(0, abs=0.001)


def test_relu_with_hes_weights_keeps_the_signal():
    """n Var(w) = 2, and half of the units have the slope 1, the other half 0: 2 * 1/2 = 1."""
    assert factor_a_layer("relu", np.sqrt(2)) == pytest.approx(1.0, rel=0.08)
