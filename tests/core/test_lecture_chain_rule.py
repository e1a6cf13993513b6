"""The lecture, first part: single units and the chain rule on a graph, every value worked out by hand."""

import math

import numpy as np
import pytest

from core.activations import Sigmoid
from core.graph import Graph, Input, Node, Parameter
from core.losses import SquaredError
from core.operations import Add, Affine, Cos, Exp, Multiply, Square, WeightedSum
from core.storage import ROWS


def logistic_unit(*loss):
    """o = sigma(w x + b), for one row of one number."""
    return Graph(
        Input("x", (ROWS, 1)),
        Parameter("w", (1, 1)),
        Parameter("b", (1,)),
        Node("net", Affine(), "x", "w", "b"),
        Node("o", Sigmoid(), "net"),
        *loss,
    )


def at(**values):
    """A row of one number each for x, t and w; a vector of one for b."""
    return {name: np.full((1,) if name == "b" else (1, 1), value) for name, value in values.items()}


def test_logistic_unit_at_ln_3(run):
    """net = ln 3: o = 1 / (1 + 1/3) = 3/4; do/dw = o (1 - o) x = 3/16 x; do/db = o (1 - o) = 3/16."""
    x = 2.0
    value, gradients = run(logistic_unit(), at(x=x, w=math.log(3) / x, b=0.0), "o")
    assert value.item() == pytest.approx(3 / 4, rel=1e-14)
    assert gradients["w"].item() == pytest.approx(3 / 16 * x, rel=1e-14)
    assert gradients["b"].item() == pytest.approx(3 / 16, rel=1e-14)


@pytest.mark.parametrize(("net", "slope"), [(0.0, 1 / 4), (math.log(3), 3 / 16), (-math.log(3), 3 / 16)])
def test_the_logistic_curve_is_steepest_in_its_middle_and_symmetric(run, net, slope):
    _, gradients = run(logistic_unit(), at(x=1.0, w=net, b=0.0), "o")
    assert gradients["b"].item() == pytest.approx(slope, rel=1e-14)


def test_a_logistic_unit_that_is_far_off_learns_nothing(run):
    """Saturation: at net = 1000 the output is 1, however wrong that is, and the slope is 0."""
    value, gradients = run(logistic_unit(), at(x=1.0, w=1000.0, b=0.0), "o")
    assert value.item() == 1.0
    assert gradients["w"].item() == 0.0


def test_squared_loss_of_a_logistic_unit(run):
    """L = 1/2 (sigma(w x + b) - t)^2 with x = 2, w = ln(3) / 2, b = 0, t = 1/4: o = 3/4, and backwards

    L      = 1/2 (3/4 - 1/4)^2        = 1/8
    dL/do  = o - t                    = 1/2
    dL/dnet = dL/do o (1 - o)         = 1/2 * 3/16 = 3/32
    dL/dw  = dL/dnet x                = 3/16
    dL/db  = dL/dnet                  = 3/32
    """
    graph = logistic_unit(
        Input("t", (ROWS, 1)), Node("losses", SquaredError(), "o", "t"), Input("one", (ROWS,)),
        Node("L", WeightedSum(), "losses", "one"),
    )  # fmt: skip
    values = at(x=2.0, w=math.log(3) / 2, b=0.0, t=1 / 4) | {"one": np.ones(1)}
    loss, gradients = run(graph, values, "L")
    assert loss.item() == pytest.approx(1 / 8, rel=1e-14)
    assert gradients["w"].item() == pytest.approx(3 / 16, rel=1e-13)
    assert gradients["b"].item() == pytest.approx(3 / 32, rel=1e-13)


def test_the_error_signal_at_the_output_is_the_error(run):
    """dL/do = o - t, seen by making o itself what is learned."""
    graph = Graph(Parameter("o", (ROWS, 3)), Input("t", (ROWS, 3)), Node("L", SquaredError(), "o", "t"))
    loss, gradients = run(graph, {"o": np.array([[0.75, 0.5, 0.0]]), "t": np.array([[0.25, 0.5, 1.0]])}, "L")
    assert loss.item() == 0.5 * (0.25 + 0.0 + 1.0)
    np.testing.assert_array_equal(gradients["o"], [[0.5, 0.0, -1.0]])


def test_one_step_downhill_lowers_the_loss_by_the_squared_slope(run):
    """To first order L(w - rate dL/dw) = L(w) - rate (dL/dw)^2, which is why gradient descent descends."""
    graph = Graph(Parameter("w", (ROWS, 1)), Input("t", (ROWS, 1)), Node("o", Sigmoid(), "w"),
                  Node("L", SquaredError(), "o", "t"))  # fmt: skip
    rate, before = 1e-4, at(w=1.0, t=0.0)
    loss, gradients = run(graph, before, "L")
    after, _ = run(graph, before | {"w": before["w"] - rate * gradients["w"]}, "L")
    assert (loss - after).item() == pytest.approx(rate * gradients["w"].item() ** 2, rel=1e-3)


# f(x, y) = y + e^(x y) with x = cos t and y = t^2: t feeds two nodes, y feeds two nodes.
FAN_OUT = Graph(
    Parameter("t"),
    Node("x", Cos(), "t"),
    Node("y", Square(), "t"),
    Node("xy", Multiply(), "x", "y"),
    Node("e", Exp(), "xy"),
    Node("f", Add(), "y", "e"),
)


def test_multivariate_chain_rule_at_pi(run):
    """t = pi: x = -1, y = pi^2, e = e^(-pi^2).

    df/dx = y e,  df/dy = 1 + x e = 1 - e,  dx/dt = -sin pi = 0,  dy/dt = 2 pi:  df/dt = 2 pi (1 - e^(-pi^2)).
    """
    value, gradients = run(FAN_OUT, {"t": np.array(math.pi)}, "f")
    e = math.exp(-(math.pi**2))
    assert value.item() == pytest.approx(math.pi**2 + e, rel=1e-14)
    assert gradients["t"].item() == pytest.approx(2 * math.pi * (1 - e), rel=1e-14)


def test_multivariate_chain_rule_at_half_pi(run):
    """t = pi/2: x = 0, y = pi^2/4, e = 1.  df/dt = y e (-sin t) + (1 + x e) 2 t = -pi^2/4 + pi."""
    value, gradients = run(FAN_OUT, {"t": np.array(math.pi / 2)}, "f")
    assert value.item() == pytest.approx(math.pi**2 / 4 + 1, rel=1e-14)
    assert gradients["t"].item() == pytest.approx(math.pi - math.pi**2 / 4, rel=1e-14)


@pytest.mark.parametrize("t", [-1.3, 0.0, 0.4, 2.0])
def test_multivariate_chain_rule_anywhere(run, t):
    """df/dt = df/dx dx/dt + df/dy dy/dt = y e^(xy) (-sin t) + (1 + x e^(xy)) 2 t."""
    x, y = math.cos(t), t * t
    expected = y * math.exp(x * y) * -math.sin(t) + (1 + x * math.exp(x * y)) * 2 * t
    _, gradients = run(FAN_OUT, {"t": np.array(t)}, "f")
    assert gradients["t"].item() == pytest.approx(expected, rel=1e-13)


def test_a_node_is_visited_after_its_parents_forward_and_after_its_children_backward():
    order = FAN_OUT.order
    assert order.index("t") < order.index("y") < order.index("xy") < order.index("e") < order.index("f")
    assert set(FAN_OUT.children["y"]) == {"xy", "f"}


def test_a_chain_multiplies_slopes_and_a_fan_out_adds_them(run):
    """exp(t^2): slopes 2t and e^(t^2) multiply. t * t by two arrows: 1 t + 1 t."""
    t = {"t": np.array(1.5)}
    _, chain = run(Graph(Parameter("t"), Node("y", Square(), "t"), Node("f", Exp(), "y")), t, "f")
    _, fan = run(Graph(Parameter("t"), Node("f", Multiply(), "t", "t")), t, "f")
    assert chain["t"].item() == pytest.approx(math.exp(2.25) * 3.0, rel=1e-14)
    assert fan["t"].item() == 3.0
