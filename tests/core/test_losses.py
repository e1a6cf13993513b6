import numpy as np
import pytest

from core.errors import GraphError
from core.graph import Graph, Input, Node, Parameter
from core.losses import LOSSES, BinaryCrossEntropy, BinaryProbabilities, CrossEntropy, Huber, Softmax, SquaredError
from core.operations import Multiply, WeightedSum
from core.plan import Plan
from core.storage import ROWS, Storage

RNG = np.random.default_rng(0)


def graph_of(loss, outputs):
    kind = LOSSES[loss]()
    return Graph(
        Parameter("x", (ROWS, kind.units(outputs))),
        Input("t", kind.target_shape(outputs), np.int32 if kind.classes else None),
        Node("losses", LOSSES[loss](), "x", "t"),
        Input("w", (ROWS,)),
        Node("L", WeightedSum(), "losses", "w"),
    )


def some_targets(loss, rows, outputs):
    if LOSSES[loss].classes:
        return RNG.integers(0, outputs, rows).astype(np.int32)
    return RNG.normal(size=(rows, outputs))


@pytest.mark.parametrize("outputs", [1, 3, 150])  # more than _FEW_CLASSES: the other way to a row's maximum
@pytest.mark.parametrize("loss", LOSSES)
def test_gradient(loss, outputs, gradient_error):
    units = LOSSES[loss]().units(outputs)
    targets = some_targets(loss, 4, 2 if loss == "binary_cross_entropy" else outputs)
    arrays = {"x": RNG.normal(size=(4, units)) * 2, "t": targets, "w": RNG.uniform(0, 2, 4)}
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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("loss", "expected", "slopes"), [("squared_error", 1e8, [1e4, -1e4]), ("huber", 2e4 - 1, [1, -1])]
)
def test_regression_of_extreme_outputs(loss, expected, slopes, dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    plan = Plan(graph_of(loss, 5), 1, Storage(dtype), (), "L")
    plan.parameters["x"].bind(np.array([[1e4, -1e4, 0.0, -0.0, tiny]], dtype))
    plan.inputs["t"].bind(np.zeros((1, 5), dtype))
    plan.inputs["w"].bind(np.ones(1, dtype))
    gradients = {"x": np.empty((1, 5), dtype)}
    plan.bind_gradients(gradients)
    assert plan.forward("L") == expected
    plan.backward()
    np.testing.assert_array_equal(gradients["x"], np.array([[*slopes, 0, 0, tiny]], dtype))


@pytest.mark.parametrize("operation", [CrossEntropy(), BinaryCrossEntropy(), SquaredError(), Huber(), Softmax()])
def test_shapes_are_checked(operation):
    parents = ("x", "t") if not isinstance(operation, Softmax) else ("x",)
    with pytest.raises(GraphError, match="rows"):
        Graph(Parameter("x", (3,)), Input("t", (ROWS, 2)), Node("z", operation, *parents))


def test_binary_cross_entropy_by_hand(run):
    """sigmoid(ln 3) = 3/4: the losses are ln(4/3) and ln 4, the error signals p - t, times the row's weight."""
    arrays = {"x": np.log([[3.0], [3.0]]), "t": np.array([1, 0], np.int32), "w": np.array([1.0, 2.0])}
    value, gradients = run(graph_of("binary_cross_entropy", 2), arrays, "L", 2)
    np.testing.assert_allclose(value, np.log(4 / 3) + 2 * np.log(4), rtol=1e-14)
    np.testing.assert_allclose(gradients["x"], [[-0.25], [1.5]], rtol=1e-14)


def test_binary_cross_entropy_is_cross_entropy_of_two_classes(run):
    logits, t, w = RNG.normal(size=(6, 1)) * 4, RNG.integers(0, 2, 6).astype(np.int32), RNG.uniform(0, 2, 6)
    one = run(graph_of("binary_cross_entropy", 2), {"x": logits, "t": t, "w": w}, "L", 6)
    both = {"x": np.concatenate([np.zeros_like(logits), logits], axis=1), "t": t, "w": w}
    two = run(graph_of("cross_entropy", 2), both, "L", 6)
    assert one[0] == pytest.approx(two[0], rel=1e-12)
    np.testing.assert_allclose(one[1]["x"][:, 0], two[1]["x"][:, 1], rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_binary_cross_entropy_of_extreme_logits(dtype):
    x = np.array([[1e4], [1e4], [-1e4], [-1e4], [0.0], [-0.0], [np.finfo(dtype).smallest_subnormal]], dtype)
    plan = Plan(graph_of("binary_cross_entropy", 2), 7, Storage(dtype), ("losses",), "L")
    plan.parameters["x"].bind(x)
    plan.inputs["t"].bind(np.array([1, 0, 1, 0, 1, 0, 0], np.int32))
    plan.inputs["w"].bind(np.ones(7, dtype))
    gradients = {"x": np.empty_like(x)}
    plan.bind_gradients(gradients)
    plan.forward("L")
    np.testing.assert_allclose(plan.value("losses"), [0, 1e4, 1e4, 0, *[np.log(2)] * 3], rtol=1e-6)
    plan.backward()
    np.testing.assert_allclose(gradients["x"][:, 0], [0, 1, -1, 0, -0.5, 0.5, 0.5], rtol=1e-6)


def test_binary_probabilities():
    x = np.array([[np.log(3.0)], [1e4], [-1e4]])
    graph = Graph(Parameter("x", (ROWS, 1)), Node("p", BinaryProbabilities(), "x"), Node("L", Multiply(), "x", "x"))
    plan = Plan(graph, 3, Storage(np.float64), ("p",), "L")
    plan.parameters["x"].bind(x)
    np.testing.assert_allclose(plan.forward("p"), [[0.25, 0.75], [0, 1], [1, 0]], rtol=1e-14)


@pytest.mark.parametrize(("dtype", "digits"), [(np.float32, 1e-6), (np.float64, 1e-14)])
def test_binary_probabilities_keep_both_tails(dtype, digits):
    """To the last digits, though 1 - p has none left: at -20 it was 0 in float32."""
    x = np.array([-80.0, -20.0, -17.0, -1.0, -1e-3, -0.0, 0.0, np.finfo(dtype).smallest_subnormal, 2.0, 17.0, 80.0])
    plan = Plan(
        Graph(Parameter("x", (ROWS, 1)), Node("p", BinaryProbabilities(), "x"), Node("L", Multiply(), "x", "x")),
        len(x),
        Storage(dtype),
        ("p",),
        "L",
    )
    plan.parameters["x"].bind(x[:, None].astype(dtype))
    exact = x.astype(np.longdouble)
    expected = np.stack([1 / (1 + np.exp(exact)), 1 / (1 + np.exp(-exact))], axis=1).astype(float)
    np.testing.assert_allclose(plan.forward("p"), expected, rtol=digits)


def test_huber_by_hand(run):
    """delta 2: an error of 1 costs 1/2 with the slope 1, one of -5 costs 2 (5 - 1) = 8 with the slope -2."""
    graph = Graph(
        Parameter("x", (ROWS, 2)),
        Input("t", (ROWS, 2)),
        Node("losses", Huber(2.0), "x", "t"),
        Input("w", (ROWS,)),
        Node("L", WeightedSum(), "losses", "w"),
    )
    arrays = {"x": np.array([[1.0, 0.0]]), "t": np.array([[0.0, 5.0]]), "w": np.array([3.0])}
    value, gradients = run(graph, arrays, "L", 1)
    assert value == 3 * 8.5
    np.testing.assert_array_equal(gradients["x"], [[3.0, -6.0]])


def test_huber_of_a_large_delta_is_the_squared_error(run):
    arrays = {"x": RNG.normal(size=(4, 3)), "t": RNG.normal(size=(4, 3)), "w": RNG.uniform(0, 2, 4)}
    graph = Graph(
        Parameter("x", (ROWS, 3)),
        Input("t", (ROWS, 3)),
        Node("losses", Huber(1e3), "x", "t"),
        Input("w", (ROWS,)),
        Node("L", WeightedSum(), "losses", "w"),
    )
    found, expected = run(graph, arrays, "L", 4), run(graph_of("squared_error", 3), arrays, "L", 4)
    assert found[0] == pytest.approx(expected[0], rel=1e-14)
    np.testing.assert_array_equal(found[1]["x"], expected[1]["x"])
