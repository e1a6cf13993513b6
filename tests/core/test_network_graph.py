"""Networks by `layers` and `graph`, with dropout and layer normalization: gradients, costs, determinism."""

import tracemalloc

import numpy as np
import pytest

from core.draw import Draw
from core.network import LayerSpec, Network, NetworkSpec, initial_parameters, parameter_count, summary

RNG = np.random.default_rng(0)

LAYERS = (LayerSpec(6, "tanh", 0.3), LayerSpec(5, {"name": "leaky_relu", "negative_slope": 0.2}, None, True))
RESIDUAL = (
    {"name": "a", "inputs": ("features",), "units": 6, "dropout": 0.4},
    {"name": "b", "inputs": ("a",), "units": 6, "activation": "identity", "layer_norm": True},
    {"name": "c", "inputs": ("a", "b", "a"), "operation": "sum", "activation": "gelu"},
)
BRANCHES = (
    {"name": "gate", "inputs": ("features",), "units": 4, "activation": "sigmoid"},
    {"name": "gated", "inputs": ("gate", "features"), "operation": "product"},
    {"name": "wide", "inputs": ("gated",), "units": 7},
    {
        "name": "all",
        "inputs": ("wide", "features", "gate"),
        "operation": "concatenate",
        "dropout": 0.2,
        "layer_norm": True,
    },
)
SPECS = {
    "layers": NetworkSpec(4, 3, layers=LAYERS, dtype="float64"),
    "residual": NetworkSpec(4, 3, activation="tanh", graph=RESIDUAL, dtype="float64", loss="huber"),
    "branches": NetworkSpec(4, 2, activation="silu", graph=BRANCHES, dtype="float64", loss="binary_cross_entropy"),
    "normalized": NetworkSpec(4, 3, (6, 5), "gelu", layer_norm=True, dropout=0.5, dtype="float64"),
}


def data(spec, rows):
    features = RNG.normal(size=(rows, spec.inputs)).astype(spec.dtype)
    if spec.make_loss().classes:
        return features, RNG.integers(0, spec.outputs, rows).astype(np.int32)
    return features, RNG.normal(size=(rows, spec.outputs)).astype(spec.dtype)


@pytest.mark.parametrize("draw", [None, Draw(1, 2, 3)])
@pytest.mark.parametrize("name", SPECS)
def test_gradient(name, draw):
    """With the masks of a draw held fixed, dropout is a function like any other."""
    spec = SPECS[name]
    network, parameters = Network(spec, 7), initial_parameters(spec, 3)
    parameters += RNG.normal(size=len(parameters)) * 0.1
    arrays, gradient = data(spec, 7), np.empty_like(parameters)
    network.loss_and_gradient(parameters, gradient, *arrays, None, draw)
    differences, scratch = np.empty_like(gradient), np.empty_like(gradient)
    for k in range(len(parameters)):
        losses = []
        for shift in (1e-5, -1e-5):
            shifted = parameters.copy()
            shifted[k] += shift
            losses.append(network.loss_and_gradient(shifted, scratch, *arrays, None, draw))
        differences[k] = (losses[0] - losses[1]) / 2e-5
    assert np.abs(gradient - differences).max() < 1e-7 * np.abs(gradient).max()


def test_a_residual_network_by_hand():
    graph = (
        {"name": "a", "inputs": ("features",), "units": 5},
        {"name": "b", "inputs": ("a",), "units": 5, "activation": "identity"},
        {"name": "c", "inputs": ("a", "b"), "operation": "sum", "activation": "relu"},
    )
    spec = NetworkSpec(4, 3, activation="tanh", graph=graph, loss="squared_error", dtype="float64")
    network, parameters = Network(spec, 6), RNG.normal(size=parameter_count(spec))
    p = network.layout.views(parameters)
    x, _ = data(spec, 6)
    a = np.tanh(x @ p["a.weights"] + p["a.bias"])
    c = np.maximum(a + a @ p["b.weights"] + p["b.bias"], 0)
    np.testing.assert_allclose(network.predict(parameters, x), c @ p["outputs.weights"] + p["outputs.bias"], rtol=1e-12)


@pytest.mark.parametrize("name", SPECS)
def test_summary_is_what_is_built(name):
    spec = SPECS[name]
    assert parameter_count(spec) == Network(spec, 1).layout.size == sum(row["parameters"] for row in summary(spec))


def test_summary_of_a_graph():
    assert summary(SPECS["residual"]) == [
        {"name": "a", "shape": [4, 6], "parameters": 30, "flops": 96},
        {"name": "b", "shape": [6, 6], "parameters": 54, "flops": 216},
        {"name": "c", "shape": [18, 6], "parameters": 0, "flops": 0},
        {"name": "outputs", "shape": [6, 3], "parameters": 21, "flops": 108},
    ]


def test_hidden_and_layers_are_the_same_network():
    one = NetworkSpec(4, 3, (6, 5), "tanh")
    other = NetworkSpec(4, 3, activation="tanh", layers=(LayerSpec(6), LayerSpec(5)))
    np.testing.assert_array_equal(initial_parameters(one, 1), initial_parameters(other, 1))
    assert Network(one, 1).layout == Network(other, 1).layout


def test_initial_gains_are_1_and_shifts_0():
    spec = SPECS["normalized"]
    views = Network(spec, 1).layout.views(initial_parameters(spec, 0))
    assert (views["layer1.gain"] == 1).all()
    assert not views["layer2.shift"].any()
    assert "layer3.gain" not in views


def gradient_of(network, parameters, arrays, draw):
    gradient = np.empty_like(parameters)
    return network.loss_and_gradient(parameters, gradient, *arrays, None, draw), gradient


def test_dropout_is_a_function_of_the_draw_and_of_nothing_before():
    spec = NetworkSpec(4, 3, (16, 16), dropout=0.5)
    network, parameters, arrays = Network(spec, 9), initial_parameters(spec, 0), data(spec, 9)
    part = tuple(array[:4] for array in arrays)
    expected, expected_part = (gradient_of(network, parameters, a, Draw(0, 1, 0)) for a in (arrays, part))
    assert not np.array_equal(gradient_of(network, parameters, arrays, Draw(0, 2, 0))[1], expected[1])
    network.predict(parameters, arrays[0])
    again, again_part = (gradient_of(network, parameters, a, Draw(0, 1, 0)) for a in (arrays, part))
    fresh = gradient_of(Network(spec, 64), parameters, arrays, Draw(0, 1, 0))
    assert again[0] == expected[0] == fresh[0]
    for found in (again[1], fresh[1]):
        np.testing.assert_array_equal(found, expected[1])
    np.testing.assert_array_equal(again_part[1], expected_part[1])


def test_predictions_and_evaluations_drop_nothing():
    dropping, plain = NetworkSpec(4, 3, (16,), dropout=0.5), NetworkSpec(4, 3, (16,))
    parameters, arrays = initial_parameters(plain, 0), data(plain, 9)
    network = Network(dropping, 9)
    gradient_of(network, parameters, arrays, Draw(0, 1, 0))
    np.testing.assert_array_equal(
        network.predict(parameters, arrays[0]), Network(plain, 9).predict(parameters, arrays[0])
    )
    np.testing.assert_array_equal(
        network.evaluate(parameters, *arrays), Network(plain, 9).evaluate(parameters, *arrays)
    )


def test_the_mean_over_masks_is_the_network_without():
    """Of a linear network: a kept unit is scaled by 1 / (1 - rate)."""
    spec = NetworkSpec(4, 1, (400,), "identity", loss="squared_error", dropout=0.5, dtype="float64")
    network, parameters = Network(spec, 1), initial_parameters(spec, 0)
    x, zero = np.ones((1, 4)), np.zeros((1, 1))
    gradient, bias = np.empty_like(parameters), network.layout.offsets[-1]
    values = []
    for step in range(2000):
        network.loss_and_gradient(parameters, gradient, x, zero, None, Draw(0, step, 0))
        values.append(gradient[bias])  # of 1/2 o^2 by the output's bias: o
    expected = network.predict(parameters, x)[0, 0]
    assert np.mean(values) == pytest.approx(expected, abs=4 * np.std(values) / np.sqrt(2000))
    assert np.std(values) > 0.01


@pytest.mark.parametrize("name", SPECS)
def test_a_steady_state_step_allocates_no_array(name):
    wide = {"inputs": 50, "dtype": "float32"}
    kinds = {
        "layers": {
            "layers": tuple(LayerSpec(64, layer.activation, layer.dropout, layer.layer_norm) for layer in LAYERS)
        },
        "residual": {"graph": tuple(node | ({"units": 64} if "units" in node else {}) for node in RESIDUAL)},
        "branches": {"graph": tuple(node | ({"units": 50} if "units" in node else {}) for node in BRANCHES)},
        "normalized": {"hidden": (64, 64)},
    }
    fields = {"loss": SPECS[name].loss, "activation": SPECS[name].activation, "outputs": SPECS[name].outputs}
    spec = NetworkSpec(**wide, **fields, **kinds[name], dropout=0.1, input_noise=0.1, layer_norm=True)
    network, parameters = Network(spec, 256), initial_parameters(spec, 0)
    gradient, batches = np.empty_like(parameters), [data(spec, 256), data(spec, 100)]

    def steps():
        for batch in batches:
            network.loss_and_gradient(parameters, gradient, *batch, None, Draw(0, 1, 2))

    steps()
    tracemalloc.start()
    steps()
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    steps()
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - before < 5000  # views and the generators' seeds; the least layer would be 20,000
    assert after - before < 500
