import numpy as np
import pytest

from core.errors import GraphError
from core.graph import Graph, Input, Node, Parameter
from core.operations import (
    Add,
    Affine,
    Concatenate,
    Cos,
    Divide,
    Exp,
    Log,
    MatMul,
    Mean,
    Multiply,
    Negate,
    Power,
    Scale,
    Sin,
    Sqrt,
    Square,
    Subtract,
    Sum,
    WeightedSum,
)
from core.plan import Plan
from core.storage import ROWS, Storage

RNG = np.random.default_rng(0)


UNARY = [
    (Exp(), np.exp),
    (Log(), np.log),
    (Square(), lambda x: x * x),
    (Sin(), np.sin),
    (Cos(), np.cos),
    (Sqrt(), np.sqrt),
    (Negate(), lambda x: -x),
    (Scale(-2.5), lambda x: -2.5 * x),
    (Power(3.0), lambda x: x**3),
    (Power(-0.5), lambda x: x**-0.5),
]


@pytest.mark.parametrize("operation", [operation for operation, _ in UNARY], ids=str)
def test_unary_gradient(operation, gradient_error):
    graph = Graph(
        Parameter("x", (4, 3)), Node("z", operation, "x"), Input("c", (4, 3)), Node("L", Multiply(), "z", "c")
    )
    arrays = {"x": RNG.uniform(0.5, 2.0, (4, 3)), "c": RNG.normal(size=(4, 3))}
    assert gradient_error(graph, arrays, "L") < 1e-7


@pytest.mark.parametrize(("operation", "function"), UNARY, ids=str)
def test_unary_value(operation, function, run):
    x = RNG.uniform(0.5, 2.0, (4, 3))
    value, _ = run(Graph(Parameter("x", (4, 3)), Node("z", operation, "x")), {"x": x}, "z")
    np.testing.assert_allclose(value, function(x), rtol=1e-15)


@pytest.mark.parametrize("operation", [Add(), Subtract(), Multiply(), Divide()], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("second", ["y", "x"])
def test_binary_gradient(operation, second, gradient_error):
    """`second` x: one parent twice, whose messages add up."""
    declared = [Parameter(name, (4, 3)) for name in sorted({"x", second})]
    graph = Graph(*declared, Node("z", operation, "x", second), Input("c", (4, 3)), Node("L", Multiply(), "z", "c"))
    arrays = {name: RNG.uniform(0.5, 2.0, (4, 3)) for name in ("x", "y")} | {"c": RNG.normal(size=(4, 3))}
    assert gradient_error(graph, arrays, "L") < 1e-7


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 48])
@pytest.mark.parametrize("units", [3, 2048])  # above _LARGE: the turned product
def test_affine_gradient(rows, units, run):
    """Against the textbook's formulas: the sum of c z has the error signal c."""
    graph = Graph(
        Parameter("x", (ROWS, 8)),
        Parameter("W", (8, units)),
        Parameter("b", (units,)),
        Node("z", Affine(), "x", "W", "b"),
        Input("c", (ROWS, units)),
        Node("L", Multiply(), "z", "c"),
    )
    shapes = {"x": (rows, 8), "W": (8, units), "b": (units,), "c": (rows, units)}
    a = {name: RNG.normal(size=shape) for name, shape in shapes.items()}
    value, gradients = run(graph, a, "L", rows)
    np.testing.assert_allclose(value, (a["x"] @ a["W"] + a["b"]) * a["c"], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(gradients["x"], a["c"] @ a["W"].T, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(gradients["W"], a["x"].T @ a["c"], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(gradients["b"], a["c"].sum(axis=0), rtol=1e-11, atol=1e-11)


def test_concatenate_gradient(run, gradient_error):
    graph = Graph(
        Parameter("x", (ROWS, 2)),
        Parameter("y", (ROWS, 3)),
        Node("z", Concatenate(), "x", "y", "x"),
        Input("c", (ROWS, 7)),
        Node("L", Multiply(), "z", "c"),
    )
    arrays = {"x": RNG.normal(size=(4, 2)), "y": RNG.normal(size=(4, 3)), "c": RNG.normal(size=(4, 7))}
    value, _ = run(graph, arrays, "L", 4)
    np.testing.assert_array_equal(value, np.concatenate([arrays["x"], arrays["y"], arrays["x"]], axis=1) * arrays["c"])
    assert gradient_error(graph, arrays, "L", 4) < 1e-7


def test_add_takes_any_number_of_parents(run, gradient_error):
    names = ["x", "y", "x", "v"]
    graph = Graph(
        *(Parameter(name, (2, 3)) for name in "xyv"),
        Node("z", Add(), *names),
        Input("c", (2, 3)),
        Node("L", Multiply(), "z", "c"),
    )
    arrays = {name: RNG.normal(size=(2, 3)) for name in "xyvc"}
    value, gradients = run(graph, arrays, "L")
    np.testing.assert_allclose(value, sum(arrays[name] for name in names) * arrays["c"], rtol=1e-14)
    np.testing.assert_array_equal(gradients["x"], 2 * arrays["c"])
    assert gradient_error(graph, arrays, "L") < 1e-7


@pytest.mark.parametrize("rows", [ROWS, 4])
def test_matmul(rows, run, gradient_error):
    graph = Graph(
        Parameter("x", (rows, 3)),
        Parameter("y", (3, 2)),
        Node("z", MatMul(), "x", "y"),
        Input("c", (rows, 2)),
        Node("L", Multiply(), "z", "c"),
    )
    arrays = {"x": RNG.normal(size=(4, 3)), "y": RNG.normal(size=(3, 2)), "c": RNG.normal(size=(4, 2))}
    value, gradients = run(graph, arrays, "L", 4)
    np.testing.assert_allclose(value, arrays["x"] @ arrays["y"] * arrays["c"], rtol=1e-14)
    np.testing.assert_allclose(gradients["x"], arrays["c"] @ arrays["y"].T, rtol=1e-14)
    assert gradient_error(graph, arrays, "L", 4) < 1e-7


@pytest.mark.parametrize(("operation", "function"), [(Sum(), np.sum), (Mean(), np.mean)], ids=["sum", "mean"])
@pytest.mark.parametrize("shape", [(ROWS, 5), (5,), (2, 3, 5)])
def test_sums_over_the_last_dimension(operation, function, shape, run, gradient_error):
    graph = Graph(
        Parameter("x", shape), Node("z", operation, "x"), Input("c", shape[:-1]), Node("L", Multiply(), "z", "c")
    )
    sizes = tuple(4 if size == ROWS else size for size in shape)
    arrays = {"x": RNG.normal(size=sizes), "c": np.asarray(RNG.normal(size=sizes[:-1]))}
    value, _ = run(graph, arrays, "L", 4)
    np.testing.assert_allclose(value, function(arrays["x"], axis=-1) * arrays["c"], rtol=1e-14)
    assert gradient_error(graph, arrays, "L", 4) < 1e-7


TINY = {np.float32: np.finfo(np.float32).smallest_subnormal, np.float64: np.finfo(np.float64).smallest_subnormal}
EVERYWHERE = [1e4, -1e4, 0.0, -0.0, "tiny", "-tiny"]
EXTREMES = [
    (Square(), lambda x: x * x, lambda x: 2 * x, EVERYWHERE),
    (Sin(), np.sin, np.cos, EVERYWHERE),
    (Cos(), np.cos, lambda x: -np.sin(x), EVERYWHERE),
    (Negate(), lambda x: -x, lambda x: -np.ones_like(x), EVERYWHERE),
    (Scale(0.5), lambda x: x / 2, lambda x: np.full_like(x, 0.5), EVERYWHERE),
    (Power(2.0), lambda x: x**2, lambda x: 2 * x, EVERYWHERE),
    (Power(1.0), lambda x: x, np.ones_like, EVERYWHERE),
    (Power(0.0), np.ones_like, np.zeros_like, EVERYWHERE),
    (Exp(), np.exp, np.exp, [-1e4, 0.0, -0.0, "tiny", "-tiny", 80.0]),  # e^10000 is not a number of these types
    (Log(), np.log, lambda x: 1 / x, [1e4, 1e-30]),  # the slope at a subnormal is not
    (Sqrt(), np.sqrt, lambda x: 0.5 / np.sqrt(x), [1e4, "tiny"]),  # nor is that at 0
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("operation", "function", "slope", "at"), EXTREMES, ids=lambda value: str(value)[:12])
def test_extremes_are_finite_and_right(operation, function, slope, at, dtype):
    """Wherever value and slope are numbers of the dtype: warnings are errors here."""
    tiny = {"tiny": TINY[dtype], "-tiny": -TINY[dtype]}
    x = np.array([tiny.get(value, value) for value in at], dtype)
    plan = Plan(Graph(Parameter("x", x.shape), Node("z", operation, "x")), 1, Storage(dtype), (), "z")
    plan.parameters["x"].bind(x)
    gradient = {"x": np.empty_like(x)}
    plan.bind_gradients(gradient)
    exact = x.astype(np.longdouble)
    np.testing.assert_allclose(plan.forward("z"), function(exact).astype(dtype), rtol=1e-6)
    plan.backward()
    np.testing.assert_allclose(gradient["x"], slope(exact).astype(dtype), rtol=1e-6)


def every_pair(dtype):
    """x and y: each of the extremes beside each."""
    values = np.array([1e4, -1e4, 0.0, -0.0, TINY[dtype], -TINY[dtype]], dtype)
    return np.repeat(values, 6), np.tile(values, 6)


def two_matrices(dtype):
    tiny = TINY[dtype]
    x = np.array([[1e4, -1e4], [0.0, -0.0], [tiny, -tiny], [1e4, tiny]], dtype)
    return x, np.array([[1e4, 0.0, tiny], [1e4, -0.0, -1e4]], dtype)


def numbers_to_divide(dtype):
    """By 0, or by a subnormal number, the slope is not a number of the type: by 1 instead."""
    x, y = every_pair(dtype)
    return x, np.where(np.abs(y) == 1e4, y, 1).astype(dtype)


def rows_to_sum(dtype):
    return (np.array([[1e4, -1e4, 0.0], [TINY[dtype], -0.0, TINY[dtype]], [1e4, 1e4, -TINY[dtype]]], dtype),)


def ones(*shape):
    return np.ones(shape, np.longdouble)


SEVERAL = [  # an operation, parents, their value, and the gradients of its sum
    (Add(), every_pair, lambda x, y: x + y, lambda x, y: (ones(36), ones(36))),
    (Subtract(), every_pair, lambda x, y: x - y, lambda x, y: (ones(36), -ones(36))),
    (Multiply(), every_pair, lambda x, y: x * y, lambda x, y: (y, x)),
    (Divide(), numbers_to_divide, lambda x, y: x / y, lambda x, y: (1 / y, -x / y**2)),
    (MatMul(), two_matrices, lambda x, y: x @ y, lambda x, y: (ones(4, 3) @ y.T, x.T @ ones(4, 3))),
    (
        Affine(),
        lambda dtype: (*two_matrices(dtype), np.array([-0.0, 1e4, TINY[dtype]], dtype)),
        lambda x, w, b: x @ w + b,
        lambda x, w, b: (ones(4, 3) @ w.T, x.T @ ones(4, 3), 4 * ones(3)),
    ),
    (
        Concatenate(),
        lambda dtype: (two_matrices(dtype)[0][2:], two_matrices(dtype)[1]),
        lambda x, y: np.concatenate([x, y], axis=1),
        lambda x, y: (ones(2, 2), ones(2, 3)),
    ),
    (Sum(), rows_to_sum, lambda x: x.sum(axis=1), lambda x: (ones(3, 3),)),
    (Mean(), rows_to_sum, lambda x: x.mean(axis=1), lambda x: (ones(3, 3) / 3,)),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("operation", "parents", "function", "slopes"), SEVERAL, ids=[type(case[0]).__name__ for case in SEVERAL]
)
def test_extremes_of_operations_on_several_numbers(operation, parents, function, slopes, dtype):
    arrays = dict(zip("xyb", parents(dtype), strict=False))
    if isinstance(operation, Affine):
        declared = {"x": (ROWS, 2), "y": (2, 3), "b": (3,)}
    else:
        declared = {name: array.shape for name, array in arrays.items()}
    nodes = [Parameter(name, shape) for name, shape in declared.items()]
    plan = Plan(Graph(*nodes, Node("z", operation, *arrays)), 4, Storage(dtype), (), "z")
    gradients = {name: np.empty_like(array) for name, array in arrays.items()}
    plan.bind_parameters(arrays)
    plan.bind_gradients(gradients)
    exact = [array.astype(np.longdouble) for array in arrays.values()]
    np.testing.assert_allclose(plan.forward("z"), function(*exact).astype(dtype), rtol=1e-6)
    plan.backward()
    for gradient, expected in zip(gradients.values(), slopes(*exact), strict=True):
        np.testing.assert_allclose(gradient, expected.astype(dtype), rtol=1e-6)


def test_weighted_sum(run, gradient_error):
    graph = Graph(Parameter("x", (ROWS,)), Input("w", (ROWS,)), Node("L", WeightedSum(), "x", "w"))
    arrays = {"x": np.array([1.0, 2.0, 3.0]), "w": np.array([0.5, 0.0, 2.0])}
    value, gradients = run(graph, arrays, "L", 3)
    assert value == 6.5
    np.testing.assert_array_equal(gradients["x"], arrays["w"])


@pytest.mark.parametrize(
    ("node", "shapes"),
    [
        (Node("z", Affine(), "x", "y", "b"), {"x": (ROWS, 3), "y": (4, 2), "b": (2,)}),
        (Node("z", Affine(), "x", "y"), {"x": (ROWS, 3), "y": (3, 2)}),
        (Node("z", Add(), "x", "y"), {"x": (2,), "y": (3,)}),
        (Node("z", Add(), "x"), {"x": (2,)}),
        (Node("z", Subtract(), "x", "y"), {"x": (2,), "y": (3,)}),
        (Node("z", MatMul(), "x", "y"), {"x": (ROWS, 3), "y": (2, 3)}),
        (Node("z", MatMul(), "x", "y"), {"x": (2, ROWS), "y": (ROWS, 3)}),
        (Node("z", MatMul(), "x", "y"), {"x": (3,), "y": (3, 2)}),
        (Node("z", Sum(), "x"), {"x": (ROWS,)}),
        (Node("z", Sum(), "x"), {"x": ()}),
        (Node("z", Exp(), "x", "y"), {"x": (2,), "y": (2,)}),
        (Node("z", Concatenate(), "x", "y"), {"x": (ROWS, 2), "y": (2,)}),
        (Node("z", Concatenate(), "x", "y"), {"x": (ROWS,), "y": (ROWS,)}),
        (Node("z", Concatenate(), "x", "y"), {"x": (2, 3), "y": (2, ROWS)}),
        (Node("z", WeightedSum(), "x", "y"), {"x": (ROWS, 2), "y": (ROWS,)}),
    ],
)
def test_shapes_that_do_not_fit_name_the_nodes(node, shapes):
    with pytest.raises(GraphError, match="expected") as caught:
        Graph(*(Parameter(name, shape) for name, shape in shapes.items()), node)
    assert caught.value.nodes == ("z", *node.parents)
