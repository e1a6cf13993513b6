import numpy as np
import pytest

from core.errors import GraphError
from core.graph import Graph, Input, Node, Parameter
from core.layer_norm import LayerNorm
from core.operations import Multiply
from core.plan import Plan
from core.storage import ROWS, Storage

RNG = np.random.default_rng(0)


def graph_of(units):
    return Graph(
        Parameter("x", (ROWS, units)),
        Parameter("g", (units,)),
        Parameter("s", (units,)),
        Node("z", LayerNorm(), "x", "g", "s"),
        Input("c", (ROWS, units)),
        Node("L", Multiply(), "z", "c"),
    )


def some(rows, units):
    shapes = {"x": (rows, units), "g": (units,), "s": (units,), "c": (rows, units)}
    return {name: RNG.normal(size=shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("units", [2, 5, 40])
def test_gradient(units, gradient_error):
    assert gradient_error(graph_of(units), some(4, units), "L", 4) < 1e-7


def test_rows_have_mean_0_and_variance_1(run):
    arrays = some(6, 50) | {"g": np.ones(50), "s": np.zeros(50), "c": np.ones((6, 50))}
    arrays["x"] = arrays["x"] * 1e3 + 1e4
    value, _ = run(graph_of(50), arrays, "L", 6)
    np.testing.assert_allclose(value.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(value.var(axis=1), 1, rtol=1e-9)


def test_by_hand(run):
    """(1, 3) has mean 2 and variance 1: n = (-1, 1), but for the 1e-5; z = g n + s."""
    arrays = {"x": np.array([[1.0, 3.0]]), "g": np.array([2.0, 3.0]), "s": np.array([1.0, 0.5]), "c": np.ones((1, 2))}
    value, gradients = run(graph_of(2), arrays, "L", 1)
    n = 1 / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(value, [[1 - 2 * n, 0.5 + 3 * n]], rtol=1e-14)
    np.testing.assert_allclose(gradients["g"], [-n, n], rtol=1e-14)
    np.testing.assert_array_equal(gradients["s"], [1, 1])


def planned(x):
    """A plan whose values are x's normalized rows: gain and c 1, shift 0."""
    rows, units = x.shape
    plan = Plan(graph_of(units), rows, Storage(x.dtype), (), "L")
    plan.bind_parameters({"x": x, "g": np.ones(units, x.dtype), "s": np.zeros(units, x.dtype)})
    plan.inputs["c"].bind(np.ones_like(x))
    return plan


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("units", [*range(1, 17), 256])
def test_rows_of_equal_numbers_become_zeros(units, dtype):
    """Whatever the number: its mean over a row, off by the last digit, would be an error of 1 and not of 1e-7."""
    x = np.repeat(np.array([[1e4], [12345.6], [1e6], [-3e7]], dtype), units, axis=1)
    np.testing.assert_array_equal(planned(x).forward("L"), np.zeros_like(x))


def test_rows_far_from_0_are_right_in_float32():
    x = (1e5 + RNG.normal(size=(6, 50))).astype(np.float32)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(axis=1, keepdims=True)) / np.sqrt(wide.var(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(planned(x).forward("L"), expected, atol=2e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extremes_are_finite(dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    x = np.array([[1e4, -1e4, 0.0], [1e4, 1e4, 1e4], [0.0, -0.0, 0.0], [tiny, -tiny, 0.0]], dtype)
    plan = planned(x)
    gradients = {"x": np.empty_like(x), "g": np.empty(3, dtype), "s": np.empty(3, dtype)}
    plan.bind_gradients(gradients)
    root = np.sqrt(1.5)
    np.testing.assert_allclose(plan.forward("L")[:3], [[root, -root, 0], [0, 0, 0], [0, 0, 0]], atol=1e-6)
    plan.backward()
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_shapes_are_checked():
    with pytest.raises(GraphError, match="gain"):
        Graph(Parameter("x", (ROWS, 2)), Parameter("g", (3,)), Node("z", LayerNorm(), "x", "g", "g"))
