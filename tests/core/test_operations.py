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
    Multiply,
    Sin,
    Square,
    Subtract,
    WeightedSum,
)
from core.storage import ROWS

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("operation", [Exp(), Log(), Square(), Sin(), Cos()], ids=lambda o: type(o).__name__)
def test_unary_gradient(operation, gradient_error):
    graph = Graph(
        Parameter("x", (4, 3)), Node("z", operation, "x"), Input("c", (4, 3)), Node("L", Multiply(), "z", "c")
    )
    arrays = {"x": RNG.uniform(0.5, 2.0, (4, 3)), "c": RNG.normal(size=(4, 3))}
    assert gradient_error(graph, arrays, "L") < 1e-7


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
        (Node("z", Exp(), "x", "y"), {"x": (2,), "y": (2,)}),
        (Node("z", Concatenate(), "x", "y"), {"x": (ROWS, 2), "y": (2,)}),
        (Node("z", WeightedSum(), "x", "y"), {"x": (ROWS, 2), "y": (ROWS,)}),
    ],
)
def test_shapes_that_do_not_fit_name_the_nodes(node, shapes):
    with pytest.raises(GraphError, match="expected") as caught:
        Graph(*(Parameter(name, shape) for name, shape in shapes.items()), node)
    assert caught.value.nodes == ("z", *node.parents)
