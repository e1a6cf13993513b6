import math

import numpy as np
import pytest

from core.activations import ReLU, Sigmoid, Tanh
from core.errors import GraphError
from core.graph import Graph, Input, Node, Parameter
from core.losses import Softmax
from core.operations import Add, Affine, Cos, Divide, Exp, Multiply, Sin, Square, Subtract
from core.plan import Plan
from core.storage import ROWS, Storage

RNG = np.random.default_rng(0)


def test_the_lectures_example(run):
    """f(x, y) = y + e^(xy) with x = cos t, y = t^2: dL/dt by the multivariate chain rule, by hand."""
    graph = Graph(
        Parameter("t", (1,)),
        Node("x", Cos(), "t"),
        Node("y", Square(), "t"),
        Node("xy", Multiply(), "x", "y"),
        Node("e", Exp(), "xy"),
        Node("f", Add(), "y", "e"),
    )
    t = 0.7
    value, gradients = run(graph, {"t": np.array([t])}, "f")
    e = math.exp(math.cos(t) * t * t)
    assert value[0] == pytest.approx(t * t + e, rel=1e-15)
    assert gradients["t"][0] == pytest.approx(2 * t + e * (2 * t * math.cos(t) - t * t * math.sin(t)), rel=1e-14)


def test_the_lectures_unit(run):
    """L = 1/2 (sigma(w x + b) - t)^2: dL/dw = (o - t) o (1 - o) x, dL/db without the x."""
    graph = Graph(
        Parameter("w", (1,)),
        Parameter("b", (1,)),
        Input("x", (1,)),
        Input("t", (1,)),
        Input("half", (1,)),
        Node("wx", Multiply(), "w", "x"),
        Node("z", Add(), "wx", "b"),
        Node("o", Sigmoid(), "z"),
        Node("error", Subtract(), "o", "t"),
        Node("square", Square(), "error"),
        Node("L", Multiply(), "half", "square"),
    )
    arrays = {"w": [2.0], "b": [-1.0], "x": [1.5], "t": [1.0], "half": [0.5]}
    value, gradients = run(graph, {name: np.array(array) for name, array in arrays.items()}, "L")
    o = 1 / (1 + math.exp(-2.0))
    assert value[0] == pytest.approx(0.5 * (o - 1) ** 2, rel=1e-14)
    assert gradients["b"][0] == pytest.approx((o - 1) * o * (1 - o), rel=1e-14)
    assert gradients["w"][0] == pytest.approx((o - 1) * o * (1 - o) * 1.5, rel=1e-14)


def perceptron(*hidden):
    nodes, previous = [Input("x", (ROWS, 4))], "x"
    for k, kind in enumerate(hidden):
        nodes += [Parameter(f"W{k}", (4, 4)), Parameter(f"b{k}", (4,))]
        nodes += [Node(f"a{k}", Affine(), previous, f"W{k}", f"b{k}"), Node(f"h{k}", kind(), f"a{k}")]
        previous = f"h{k}"
    return Graph(*nodes)


def test_a_node_overwrites_its_parent_only_where_nobody_misses_it():
    def shared(graph, parent, child, outputs=()):
        plan = Plan(graph, 2, Storage(np.float64), (*outputs, parent) if parent in outputs else outputs, child)
        return np.shares_memory(plan.value(parent), plan.value(child))

    x, w, b = Input("x", (ROWS, 4)), Parameter("W", (4, 4)), Parameter("b", (4,))
    affine = Node("a", Affine(), "x", "W", "b")
    assert shared(Graph(x, w, b, affine, Node("h", ReLU(), "a")), "a", "h")
    assert not shared(Graph(x, w, b, affine, Node("h", ReLU(), "a")), "a", "h", outputs=("a",))  # is read afterwards
    assert not shared(Graph(x, w, b, affine, Node("h", Sin(), "a")), "a", "h")  # the derivative needs the input
    two_children = Graph(x, w, b, affine, Node("h", ReLU(), "a"), Node("g", Multiply(), "a", "h"))
    assert not shared(two_children, "a", "h")
    parent_reads_its_output = Graph(x, w, b, affine, Node("h", Tanh(), "a"), Node("g", ReLU(), "h"))
    assert not shared(parent_reads_its_output, "h", "g")


def test_data_receives_no_error_signal():
    """Of the two products of the first layer's backward pass, only the one for its weights is planned."""
    plan = Plan(perceptron(Tanh, Tanh), 2, Storage(np.float64), (), "h1")
    planned = [getattr(function, "__qualname__", "") for function, _ in plan._backward]
    assert planned.count("Affine.to_w") == 2
    assert planned.count("Affine.to_x") == 1


def test_smaller_plans_use_the_same_memory():
    storage, graph = Storage(np.float64), perceptron(Tanh, ReLU)
    large, small = (Plan(graph, rows, storage, (), "h1") for rows in (8, 3))
    assert small.value("h0").shape == (3, 4)
    assert np.shares_memory(large.value("h0"), small.value("h0"))


def test_places_check_what_is_bound():
    plan = Plan(perceptron(ReLU), 2, Storage(np.float32), (), "h0")
    with pytest.raises(GraphError, match=r"float32 \(2, 4\)") as caught:
        plan.inputs["x"].bind(np.zeros((3, 4), np.float32))
    assert caught.value.nodes == ("x",)
    with pytest.raises(GraphError, match="float64"):
        plan.inputs["x"].bind(np.zeros((2, 4)))


def test_parameter_without_influence_is_refused():
    with pytest.raises(GraphError, match="does not depend") as caught:
        Plan(Graph(Parameter("p"), Parameter("q"), Node("L", Exp(), "p")), 1, Storage(np.float64), (), "L")
    assert caught.value.nodes == ("q",)
    fused_only = Graph(Parameter("p", (ROWS, 2)), Node("L", Softmax(), "p"))
    with pytest.raises(GraphError, match="does not depend"):
        Plan(fused_only, 1, Storage(np.float64), (), "L")


@pytest.mark.parametrize(
    ("outputs", "loss", "unknown"), [((), "l", ("l",)), (("h0", "h7"), "h0", ("h7",)), (("x7",), "l", ("x7", "l"))]
)
def test_outputs_that_the_graph_does_not_have_are_named(outputs, loss, unknown):
    with pytest.raises(GraphError, match="no such node") as caught:
        Plan(perceptron(ReLU), 2, Storage(np.float32), outputs, loss)
    assert caught.value.nodes == unknown


def test_messages_add_up_in_shared_parameters(gradient_error):
    """One matrix in two layers, and one unit's output in two places."""
    graph = Graph(
        Input("x", (ROWS, 3)),
        Parameter("W", (3, 3)),
        Parameter("b", (3,)),
        Node("a", Affine(), "x", "W", "b"),
        Node("h", Tanh(), "a"),
        Node("c", Affine(), "h", "W", "b"),
        Node("e", Exp(), "c"),
        Node("q", Divide(), "h", "e"),
        Node("L", Add(), "q", "c"),
    )
    arrays = {"x": RNG.normal(size=(5, 3)), "W": RNG.normal(size=(3, 3)), "b": RNG.normal(size=3)}
    assert gradient_error(graph, arrays, "L", 5) < 1e-7
