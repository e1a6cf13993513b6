import math

import numpy as np
import pytest

from core.activations import ACTIVATIONS
from core.diagnostics import series, update_ratios
from core.draw import Draw
from core.errors import GraphError
from core.graph import Graph, Node, Parameter
from core.network import Network, NetworkSpec, initial_parameters
from core.operations import Add
from core.parameters import ParameterLayout
from core.plan import Plan
from core.storage import Storage

RNG = np.random.default_rng(0)


def step_of(spec, rows=20, draw=None):
    network, parameters = Network(spec, rows), initial_parameters(spec, 1)
    x = RNG.normal(size=(rows, spec.inputs)).astype(spec.dtype)
    t = RNG.normal(size=(rows, spec.outputs)).astype(spec.dtype)
    network.loss_and_gradient(parameters, np.empty_like(parameters), x, t, None, draw)
    return network, network.layout.views(parameters), x, t


def test_every_figure_of_a_two_layer_network():
    spec = NetworkSpec(5, 2, (7,), "tanh", loss="squared_error", dtype="float64")
    network, p, x, t = step_of(spec)
    hidden, outputs = network.diagnostics()
    h = np.tanh(x @ p["layer1.weights"] + p["layer1.bias"])
    o = h @ p["layer2.weights"] + p["layer2.bias"]
    signal = (o - t) @ p["layer2.weights"].T * (1 - h**2)
    assert hidden.name == "layer1"
    assert hidden.activation_mean == pytest.approx(h.mean())
    assert hidden.activation_spread == pytest.approx(h.std())
    assert hidden.saturation == pytest.approx((1 - h**2 < 0.05).mean())
    assert 0 < hidden.saturation < 1
    assert (hidden.signal_mean, hidden.signal_spread) == pytest.approx((signal.mean(), signal.std()))
    assert outputs.name == "layer2"
    assert (outputs.activation_mean, outputs.saturation) == (pytest.approx(o.mean()), 0.0)
    assert outputs.signal_spread == pytest.approx((o - t).std())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_of_all_activations(name):
    x, step = np.array([-3.0, -0.5, 0.5, 3.0]), 1e-6
    operation = ACTIVATIONS[name]()
    plan = Plan(Graph(Parameter("x", (4,)), Node("z", operation, "x")), 1, Storage(np.float64), (), "z")
    values = []
    for shifted in (x + step, x - step, x):
        plan.parameters["x"].bind(shifted)
        values.append(plan.forward("z").copy())
    np.testing.assert_allclose(plan.slope("z"), (values[0] - values[1]) / (2 * step), atol=1e-8)


def test_a_relu_that_is_off_is_saturated():
    network, p, x, _ = step_of(NetworkSpec(5, 2, (50,), "relu", loss="squared_error"))
    off = (x @ p["layer1.weights"] + p["layer1.bias"] <= 0).mean()
    assert network.diagnostics()[0].saturation == pytest.approx(off)


def test_layers_of_a_graph_with_dropout_and_normalization():
    graph = (
        {"name": "a", "inputs": ("features",), "units": 30, "dropout": 0.5, "activation": "gelu"},
        {"name": "b", "inputs": ("a",), "units": 30, "layer_norm": True, "activation": "identity"},
        {"name": "c", "inputs": ("a", "b"), "operation": "sum", "activation": "tanh"},
        {"name": "twice", "inputs": ("features", "features"), "operation": "sum"},
        {"name": "all", "inputs": ("c", "twice"), "operation": "concatenate"},
    )
    found = step_of(NetworkSpec(5, 2, graph=graph, loss="squared_error"), draw=Draw(0, 1, 0))[0].diagnostics()
    assert [layer.name for layer in found] == ["a", "b", "c", "twice", "all", "outputs"]
    assert found[1].activation_spread == pytest.approx(1, rel=1e-3)
    assert all(math.isfinite(value) for layer in found[:3] for value in list(vars(layer).values())[1:])
    assert math.isnan(found[3].signal_mean)  # data alone


def test_update_ratios_by_hand():
    layout = ParameterLayout(("w", "b"), ((2, 1), (1,)))
    ratios = update_ratios(layout, np.array([3.0, 4.0, 0.0]), np.array([3.0, 4.5, 1.0]))
    assert ratios == {"w": 0.1, "b": math.inf}


def test_series_are_flat_names():
    network, *_ = step_of(NetworkSpec(5, 2, (7,), loss="squared_error"))
    found = series(network.diagnostics(), {"layer1.weights": 0.5})
    assert set(found) == {
        *(
            f"layer{k}.{figure}"
            for k in (1, 2)
            for figure in ("activation_mean", "activation_spread", "saturation", "signal_mean", "signal_spread")
        ),
        "layer1.weights.update_ratio",
    }


def test_before_any_step_there_is_nothing_to_see():
    with pytest.raises(GraphError, match="no step"):
        Network(NetworkSpec(2, 2), 1).diagnostics()


def test_only_elementwise_nodes_have_a_slope():
    graph = Graph(Parameter("x", (2,)), Node("z", Add(), "x", "x"))
    with pytest.raises(GraphError, match="no slope"):
        Plan(graph, 1, Storage(np.float64), (), "z").slope("z")


def test_what_is_not_finite_is_told_without_a_warning():
    network, parameters = Network(NetworkSpec(2, 2, (3,)), 2), np.full(17, np.inf, np.float32)
    network.loss_and_gradient(parameters, np.empty_like(parameters), np.ones((2, 2), np.float32), np.zeros(2, np.int32))
    assert not math.isfinite(network.diagnostics()[0].activation_mean)
