import numpy as np
import pytest

from core.errors import GraphError
from core.graph import Graph, Input, Node, Parameter
from core.losses import LOSSES, CrossEntropy, Softmax, SquaredError
from core.operations import Multiply, WeightedSum
from core.plan import Plan
from core.storage import ROWS, Storage

RNG = np.random.default_rng(0)


def graph_of(loss, outputs):
    targets = Input("t", (ROWS,), np.int32) if loss == "cross_entropy" else Input("t", (ROWS, outputs))
    return Graph(
        Parameter("x", (ROWS, outputs)),
        targets,
        Node("losses", LOSSES[loss](), "x", "t"),
        Input("w", (ROWS,)),
        Node("L", WeightedSum(), "losses", "w"),
    )


def some_targets(loss, rows, outputs):
    if loss == "cross_entropy":
        return RNG.integers(0, outputs, rows).astype(np.int32)
    return RNG.normal(size=(rows, outputs))


@pytest.mark.parametrize("outputs", [1, 3, 150])  # more than _FEW_CLASSES: the other way to a row's maximum
@pytest.mark.parametrize("loss", LOSSES)
def test_gradient(loss, outputs, gradient_error):
    arrays = {"x": RNG.normal(size=(4, outputs)), "t": some_targets(loss, 4, outputs), "w": RNG.uniform(0, 2, 4)}
    assert gradient_error(graph_of(loss, outputs), arrays, "L", 4) < 1e-7


def test_softmax_and_cross_entropy_by_hand(run):
    """p = (1, 2, 5) / 8: the loss is -ln p_t and the error signal p - y, times the row's weight."""
    logits = np.log([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]])
    arrays = {"x": logits, "t": np.array([2, 0], np.int32), "w": np.array([1.0, 3.0])}
    value, gradients = run(graph_of("cross_entropy", 3), arrays, "L", 2)
    np.testing.assert_allclose(value, -np.log(5 / 8) - 3 * np.log(1 / 8), rtol=1e-14)
    expected = [[1 / 8, 2 / 8, -3 / 8], [3 * -7 / 8, 3 * 2 / 8, 3 * 5 / 8]]
    np.testing.assert_allclose(gradients["x"], expected, rtol=1e-14)


def test_squared_error_by_hand(run):
    """1/2 (0.5^2 + 1^2) = 0.625, with the error signal x - t."""
    arrays = {"x": np.array([[1.5, 2.0]]), "t": np.array([[1.0, 3.0]]), "w": np.array([2.0])}
    value, gradients = run(graph_of("squared_error", 2), arrays, "L", 1)
    assert value == 1.25
    np.testing.assert_array_equal(gradients["x"], [[1.0, -2.0]])


@pytest.mark.parametrize("classes", [3, 150])
def test_softmax_rows_sum_to_one(classes):
    graph = Graph(Parameter("x", (ROWS, classes)), Node("p", Softmax(), "x"), Node("L", Multiply(), "x", "x"))
    plan = Plan(graph, 5, Storage(np.float64), ("p",), "L")
    x = RNG.normal(size=(5, classes)) * 10
    plan.parameters["x"].bind(x)
    p = plan.forward("p")
    np.testing.assert_allclose(p.sum(axis=1), 1.0, rtol=1e-14)
    np.testing.assert_allclose(np.log(p[:, 1] / p[:, 0]), x[:, 1] - x[:, 0], atol=1e-12)


@pytest.mark.parametrize("classes", [3, 150])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_of_extreme_logits(classes, dtype):
    """At +-1e4 the loss is the distance to the largest logit, without a warning."""
    x = np.full((3, classes), -1e4, dtype)
    x[:, 1] = 1e4
    graph = graph_of("cross_entropy", classes)
    plan = Plan(graph, 3, Storage(dtype), ("losses",), "L")
    plan.parameters["x"].bind(x)
    plan.inputs["t"].bind(np.array([1, 0, 2], np.int32))
    plan.inputs["w"].bind(np.ones(3, dtype))
    gradients = {"x": np.empty_like(x)}
    plan.bind_gradients(gradients)
    assert plan.forward("L") == 4e4
    np.testing.assert_array_equal(plan.value("losses"), [0.0, 2e4, 2e4])
    plan.backward()
    expected = np.zeros((3, classes))
    expected[[1, 2], 1], expected[1, 0], expected[2, 2] = 1.0, -1.0, -1.0
    np.testing.assert_array_equal(gradients["x"], expected)


def test_squared_error_of_extreme_outputs():
    graph = graph_of("squared_error", 2)
    plan = Plan(graph, 1, Storage(np.float32), (), "L")
    plan.parameters["x"].bind(np.array([[1e4, -1e4]], np.float32))
    plan.inputs["t"].bind(np.zeros((1, 2), np.float32))
    plan.inputs["w"].bind(np.ones(1, np.float32))
    assert plan.forward("L") == 1e8


@pytest.mark.parametrize("operation", [CrossEntropy(), SquaredError(), Softmax()])
def test_shapes_are_checked(operation):
    parents = ("x", "t") if not isinstance(operation, Softmax) else ("x",)
    with pytest.raises(GraphError, match="rows"):
        Graph(Parameter("x", (3,)), Input("t", (ROWS, 2)), Node("z", operation, *parents))
