import sys

import numpy as np
import pytest

from core.draw import Draw
from core.dropout import MOST_RATE, Dropout, Mask
from core.graph import Graph, Input, Node, Parameter
from core.network import Network, NetworkSpec, NodeSpec, initial_parameters, summary
from core.operations import Affine
from core.storage import ROWS, Storage

RNG = np.random.default_rng(0)


def mask_of(rate, draw, layer=1, rows=64, units=31, dtype=np.float32):
    storage = Storage(dtype)
    storage.start_plan(rows)
    mask = Mask(storage, units, rate, layer)
    mask.draw(Draw(*draw))
    return mask.array


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9, MOST_RATE])
def test_a_unit_is_dropped_with_the_rate_and_scaled_otherwise(rate):
    mask = mask_of(rate, (0, 1, 0), rows=1000, units=100)
    np.testing.assert_array_equal(np.unique(mask), np.array([0, 1 / (1 - rate)], np.float32))
    assert (mask == 0).mean() == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / mask.size))
    for half in (mask.ravel()[::2], mask.ravel()[1::2]):  # both halves of the doubles
        assert (half == 0).mean() == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / half.size))
    kept = mask > 0
    assert abs(np.corrcoef(kept[:, :-1].ravel(), kept[:, 1:].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("rate", [1e-3, 0.1, 0.9, 0.99, MOST_RATE])
def test_the_share_that_is_kept_is_right_to_a_thousandth(rate):
    """Too rare to be counted: by what both halves of a double are compared with, the upper one's last 20 bits drawn."""
    storage = Storage(np.float32)
    storage.start_plan(1)
    limits = Mask(storage, 2, rate, 1)._limits.tolist()
    low, high = limits if sys.byteorder == "little" else reversed(limits)
    assert (high - 0x3FF00000) / 2**20 == pytest.approx(1 - rate, rel=1e-3)
    assert low / 2**32 == pytest.approx(1 - rate, rel=1e-3)


def test_the_mask_is_a_function_of_seed_step_shard_and_layer():
    first = mask_of(0.5, (3, 4, 5), 6)
    np.testing.assert_array_equal(first, mask_of(0.5, (3, 4, 5), 6))
    np.testing.assert_array_equal(first, mask_of(0.5, (3, 4, 5), 6, dtype=np.float64))
    for other in [((2, 4, 5), 6), ((3, 3, 5), 6), ((3, 4, 4), 6), ((3, 4, 5), 5), ((4, 3, 5), 6)]:
        assert (first == mask_of(0.5, *other)).mean() == pytest.approx(0.5, abs=0.1)


def test_gradient(gradient_error):
    """Before an affine node, whose input's place the dropped values take."""
    graph = Graph(
        Parameter("x", (ROWS, 3)),
        Parameter("W", (3, 3)),
        Parameter("b", (3,)),
        Input("m", (ROWS, 3)),
        Node("a", Affine(), "x", "W", "b"),
        Node("d", Dropout(), "a", "m"),
        Node("L", Affine(), "d", "W", "b"),
    )
    arrays = {"x": RNG.normal(size=(4, 3)), "W": RNG.normal(size=(3, 3)), "b": RNG.normal(size=3)}
    assert gradient_error(graph, arrays | {"m": RNG.choice([0.0, 2.0], (4, 3))}, "L", 4) < 1e-7


@pytest.mark.parametrize(
    "layers",
    [
        {"hidden": (4,)},
        {"graph": (NodeSpec("a", ("features",), units=3), NodeSpec("b", ("a", "features"), "concatenate"))},
    ],
)
def test_input_dropout_silences_features_for_every_layer_that_takes_them_in_training_alone(layers):
    plain, dropping = NetworkSpec(3, 2, **layers), NetworkSpec(3, 2, **layers, input_dropout=0.5)
    parameters = initial_parameters(plain, 0)
    np.testing.assert_array_equal(parameters, initial_parameters(dropping, 0))
    x, y = RNG.normal(size=(8, 3)).astype(np.float32), RNG.integers(0, 2, 8).astype(np.int32)
    dropped = x * mask_of(0.5, (1, 2, 3), layer=0, rows=8, units=3)
    assert (dropped == 0).any()

    network, expected, found = Network(dropping, 8), np.empty_like(parameters), np.empty_like(parameters)
    loss = Network(plain, 8).loss_and_gradient(parameters, expected, dropped, y)
    assert network.loss_and_gradient(parameters, found, x, y, draw=Draw(1, 2, 3)) == loss
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(network.predict(parameters, x), Network(plain, 8).predict(parameters, x))
    assert summary(dropping)[0] == {"name": "features", "shape": [3, 3], "parameters": 0, "flops": 0}
    assert summary(dropping)[1:] == summary(plain)
