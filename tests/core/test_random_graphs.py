"""Gradients of random graphs: fan-out, shared parameters, several paths, every smooth operation."""

import numpy as np
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from core.activations import ELU, GELU, Sigmoid, SiLU, Softplus, Tanh
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
)
from core.storage import ROWS

GRAPHS = 1000
ROW_COUNT, WIDTH = 3, 2
SMOOTH = [Sin(), Cos(), Tanh(), Sigmoid(), GELU(), SiLU(), Softplus(2.0), Negate(), Scale(0.7)]
BOUNDED = [Square(), Exp(), ELU(0.5)]  # of a sine, and what may grow through a tanh: large values leave no digits
POSITIVE = [Log(), Sqrt(), Power(1.5), Power(-2.0)]  # of e^sin
PAIRS = [Add(), Subtract(), Multiply(), Divide()]
MATRICES = ["affine", "matmul", "concatenate"]


@st.composite
def graphs(draw):
    """Each node draws its operation, and its parents from all before it: (rows, 2) matrices, and what is shared."""
    shared = {"W": (WIDTH, WIDTH), "b": (WIDTH,), "V": (2 * WIDTH, WIDTH)}
    leaves = {"p0": (ROWS, WIDTH), "p1": (ROWS, WIDTH)}
    nodes = [Parameter(name, shape) for name, shape in (shared | leaves).items()]
    nodes.append(Input("i0", (ROWS, WIDTH)))
    names = ["p0", "p1", "i0"]

    def node(name, operation, *parents):
        nodes.append(Node(name, operation, *parents))
        return name

    for k in range(draw(st.integers(3, 10))):
        one, other = (draw(st.sampled_from(names)) for _ in range(2))
        operation = draw(st.sampled_from([*SMOOTH, *BOUNDED, *POSITIVE, *PAIRS, *MATRICES, "add three"]))
        if operation in BOUNDED or operation in POSITIVE:
            one = node(f"n{k}.sin", Sin(), one)
        if operation in POSITIVE:
            one = node(f"n{k}.exp", Exp(), one)
        if isinstance(operation, Divide):
            other = node(f"n{k}.exp", Exp(), node(f"n{k}.sin", Sin(), other))
        if operation in PAIRS:
            value = node(f"n{k}", operation, one, other)
        elif operation == "affine":
            value = node(f"n{k}", Affine(), one, "W", "b")
        elif operation == "matmul":
            value = node(f"n{k}", MatMul(), one, "W")
        elif operation == "concatenate":
            value = node(f"n{k}", MatMul(), node(f"n{k}.both", Concatenate(), one, other), "V")
        elif operation == "add three":
            value = node(f"n{k}", Add(), one, other, draw(st.sampled_from(names)))
        else:
            value = node(f"n{k}", operation, one)
        names.append(value if operation in SMOOTH else node(f"n{k}.tanh", Tanh(), value))
    # So that the loss depends on every parameter and node: the sum of all.
    node("W b", Affine(), names[-1], "W", "b")
    node("V b", MatMul(), node("both", Concatenate(), names[-1], names[0]), "V")
    node("all", Add(), *names, "W b", "V b")
    node("L", Add(), node("total", Sum(), "all"), node("mean", Mean(), "all"))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = {name: tuple(ROW_COUNT if size == ROWS else size for size in shape) for name, shape in leaves.items()}
    arrays = {name: rng.uniform(-1, 1, shape) for name, shape in (shared | sizes | {"i0": (ROW_COUNT, WIDTH)}).items()}
    return Graph(*nodes), arrays


@seed(0)
@settings(max_examples=GRAPHS, deadline=None, database=None)
@given(graph=graphs())
def test_gradients(graph, gradient_error):
    assert gradient_error(*graph, "L", ROW_COUNT, least=1e-3) < 1e-7
