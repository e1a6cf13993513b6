import numpy as np
import pytest
from scipy.special import erf, ndtr

from core.activations import ACTIVATIONS, ELU, LeakyReLU, Softplus
from core.erf import normal_tail
from core.graph import Graph, Input, Node, Parameter
from core.operations import Affine, Multiply
from core.plan import Plan
from core.storage import Storage

RNG = np.random.default_rng(0)


def oracle(name, x):
    """By the definitions, in extended precision where they cancel."""
    x = x.astype(np.longdouble)
    return {
        "identity": lambda: x,
        "sigmoid": lambda: 1 / (1 + np.exp(-x)),
        "tanh": lambda: (np.exp(x) - np.exp(-x)) / (np.exp(x) + np.exp(-x)),
        "relu": lambda: np.where(x > 0, x, 0),
        "leaky_relu": lambda: np.where(x > 0, x, x * np.longdouble(0.01)),
        "elu": lambda: np.where(x > 0, x, np.exp(x) - 1),
        "softplus": lambda: np.log(1 + np.exp(x)),
        "silu": lambda: x / (1 + np.exp(-x)),
        "gelu": lambda: x * ndtr(x.astype(float)),
    }[name]()


def slope(name, x):
    """dz/dx by the definitions, in extended precision; at a kink that from the left."""
    x = x.astype(np.longdouble)
    sigmoid = 1 / (1 + np.exp(-x))
    return {
        "identity": lambda: np.ones_like(x),
        "sigmoid": lambda: sigmoid / (1 + np.exp(x)),
        "tanh": lambda: 4 / (np.exp(x) + np.exp(-x)) ** 2,
        "relu": lambda: np.where(x > 0, 1, 0),
        "leaky_relu": lambda: np.where(x > 0, 1, np.longdouble(0.01)),
        "elu": lambda: np.where(x > 0, 1, np.exp(np.minimum(x, 0))),
        "softplus": lambda: sigmoid,
        "silu": lambda: sigmoid + x * sigmoid / (1 + np.exp(x)),
        "gelu": lambda: ndtr(x.astype(float)) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi),
    }[name]()


def graph_of(name, shape=(4, 5)):
    return Graph(
        Parameter("x", shape),
        Node("z", ACTIVATIONS[name](), "x"),
        Input("c", shape),
        Node("L", Multiply(), "z", "c"),
    )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value(name, run):
    x = RNG.uniform(-5, 5, (4, 5))
    value, _ = run(graph_of(name), {"x": x, "c": np.ones((4, 5))}, "L")
    np.testing.assert_allclose(value, oracle(name, x).astype(float), rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradient(name, gradient_error):
    x = RNG.uniform(0.1, 3, (4, 5)) * RNG.choice([-1.0, 1.0], (4, 5))  # not at a kink
    assert gradient_error(graph_of(name), {"x": x, "c": RNG.normal(size=(4, 5))}, "L") < 1e-7


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradient_in_place(name, gradient_error):
    """Between two affine nodes the plan lets the output take the input's place, and the message the signal's."""
    graph = Graph(
        Parameter("x", (-1, 3)),
        Parameter("W", (3, 3)),
        Parameter("b", (3,)),
        Node("a", Affine(), "x", "W", "b"),
        Node("z", ACTIVATIONS[name](), "a"),
        Node("L", Affine(), "z", "W", "b"),
    )
    plan = Plan(graph, 4, Storage(np.float64), (), "L")
    assert np.shares_memory(plan.value("a"), plan.value("z"))
    arrays = {"x": RNG.normal(size=(4, 3)), "W": RNG.normal(size=(3, 3)), "b": RNG.normal(size=3)}
    assert gradient_error(graph, arrays, "L", 4) < 1e-7


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "allowed"), [(np.float32, 1e-6), (np.float64, 1e-12)])
def test_extremes_are_finite_and_right(name, dtype, allowed):
    tiny = np.finfo(dtype).smallest_subnormal
    x = np.array([1e4, -1e4, 0.0, -0.0, tiny, -tiny, 100.0, -100.0], dtype)
    plan = Plan(graph_of(name, x.shape), 1, Storage(dtype), (), "L")
    plan.parameters["x"].bind(x)
    plan.inputs["c"].bind(np.ones_like(x))
    gradient = {"x": np.empty_like(x)}
    plan.bind_gradients(gradient)
    value = plan.forward("L")
    plan.backward()
    with np.errstate(over="ignore"):
        expected = oracle(name, np.clip(x, -4000, 4000)) * np.where(np.abs(x) > 4000, 2.5, 1)  # all but linear there
    expected = np.where(value == np.sign(value), np.clip(expected, -1, 1), expected)  # those that saturate
    np.testing.assert_allclose(value, expected.astype(float), rtol=1e-6, atol=1e-6)
    expected = slope(name, np.clip(x, -4000, 4000)).astype(float)
    np.testing.assert_allclose(gradient["x"], expected, rtol=allowed, atol=allowed)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_not_a_number_passes_through(name, run):
    x = np.array([np.nan, 1.0])
    value, _ = run(graph_of(name, (2,)), {"x": x, "c": np.ones(2)}, "L")
    np.testing.assert_array_equal(np.isnan(value), [True, False])


def test_the_logistic_unit(run):
    """The lecture's: o = sigma(x), do/dx = o (1 - o); sigma(0) = 1/2, sigma(ln 3) = 3/4."""
    x = np.array([0.0, np.log(3.0)])
    value, gradients = run(graph_of("sigmoid", (2,)), {"x": x, "c": np.ones(2)}, "L")
    np.testing.assert_allclose(value, [0.5, 0.75], rtol=1e-15)
    np.testing.assert_allclose(gradients["x"], [0.25, 0.1875], rtol=1e-15)


@pytest.mark.parametrize(("dtype", "allowed"), [(np.float32, 3e-7), (np.float64, 1e-14)])
def test_erf_is_scipys(dtype, allowed):
    x = np.concatenate([np.linspace(0, 12, 100_001), [1e4]]).astype(dtype)
    tail, exponential, scratch = (np.empty_like(x) for _ in range(3))
    normal_tail(tail, exponential, x, scratch)
    exact = x.astype(float)
    assert np.abs(1 - 2 * tail.astype(float) - erf(exact / np.sqrt(2))).max() < allowed
    near = exact < 5
    np.testing.assert_allclose(tail[near], ndtr(-exact[near]), rtol=5e-4 if dtype == np.float32 else 1e-8)
    np.testing.assert_allclose(exponential[near], np.exp(-(exact[near] ** 2) / 2), rtol=1e-5)


@pytest.mark.parametrize(("dtype", "allowed"), [(np.float32, 1e-6), (np.float64, 1e-13)])
def test_gelu_is_the_erf_form(dtype, allowed):
    x = np.linspace(-9, 9, 20_001).astype(dtype)
    plan = Plan(graph_of("gelu", x.shape), 1, Storage(dtype), (), "L")
    plan.parameters["x"].bind(x)
    plan.inputs["c"].bind(np.ones_like(x))
    gradient = {"x": np.empty_like(x)}
    plan.bind_gradients(gradient)
    exact = x.astype(float)
    assert np.abs(plan.forward("L") - exact * ndtr(exact)).max() < allowed
    plan.backward()
    density = np.exp(-(exact**2) / 2) / np.sqrt(2 * np.pi)
    assert np.abs(gradient["x"] - (ndtr(exact) + exact * density)).max() < allowed


@pytest.mark.parametrize(
    ("activation", "formula"),
    [
        (LeakyReLU(0.2), lambda x: np.where(x > 0, x, 0.2 * x)),
        (LeakyReLU(0.0), lambda x: np.where(x > 0, x, 0.0)),
        (ELU(0.5), lambda x: np.where(x > 0, x, 0.5 * np.expm1(x))),
        (ELU(2.0), lambda x: np.where(x > 0, x, 2.0 * np.expm1(x))),
        (Softplus(3.0), lambda x: np.log1p(np.exp(3.0 * x)) / 3.0),
        (Softplus(0.5), lambda x: np.log1p(np.exp(0.5 * x)) / 0.5),
    ],
    ids=str,
)
def test_numbers_of_activations(activation, formula, run, gradient_error):
    graph = Graph(
        Parameter("x", (4, 5)), Node("z", activation, "x"), Input("c", (4, 5)), Node("L", Multiply(), "z", "c")
    )
    arrays = {"x": RNG.uniform(0.1, 3, (4, 5)) * RNG.choice([-1.0, 1.0], (4, 5)), "c": RNG.normal(size=(4, 5))}
    value, _ = run(graph, arrays, "L")
    np.testing.assert_allclose(value, formula(arrays["x"]) * arrays["c"], rtol=1e-12)
    assert gradient_error(graph, arrays, "L") < 1e-7
