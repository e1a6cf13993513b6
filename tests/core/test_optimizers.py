import math
import tracemalloc

import numpy as np
import pytest

from core.errors import SpecificationError
from core.optimizers import LEAST_EPSILON, OPTIMIZERS, OptimizerSpec, make_optimizer

SPECS = [
    OptimizerSpec("sgd", 0.1),
    OptimizerSpec("sgd", 0.1, weight_decay=0.01),
    OptimizerSpec("sgd", 0.1, momentum=0.9),
    OptimizerSpec("sgd", 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    OptimizerSpec("adagrad", 0.1, weight_decay=0.01),
    OptimizerSpec("rmsprop", 0.01, beta2=0.99, weight_decay=0.01),
    OptimizerSpec("adam", 0.01, weight_decay=0.01),
    OptimizerSpec("adamw", 0.01, weight_decay=0.01),
    OptimizerSpec("adamw", 0.01),
    OptimizerSpec("sgd", 0.1, l1=0.02),
    OptimizerSpec("sgd", 0.1, momentum=0.9, weight_decay=0.01, l1=0.02),
    OptimizerSpec("adamw", 0.01, weight_decay=0.01, l1=0.02),
]


def identity(spec):
    return f"{spec.name}-{spec.momentum:g}-{spec.nesterov:d}-{spec.weight_decay:g}-{spec.l1:g}"


def scalar_step(spec, step, w, g, s):
    """The formulas once more, for one number in plain Python. `s` is the state before, a list; returns w and state."""
    rate, decay = spec.learning_rate, spec.weight_decay
    g += spec.l1 * (w > 0) - spec.l1 * (w < 0)
    if spec.name == "sgd":
        g += decay * w
        if not spec.momentum:
            return w - rate * g, []
        v = spec.momentum * s[0] + g
        return w - rate * (g + spec.momentum * v if spec.nesterov else v), [v]
    if spec.name == "adagrad":
        g += decay * w
        square = s[0] + g * g
        return w - rate * g / (math.sqrt(square) + spec.epsilon), [square]
    if spec.name == "rmsprop":
        g += decay * w
        square = spec.beta2 * s[0] + (1 - spec.beta2) * g * g
        return w - rate * g / (math.sqrt(square) + spec.epsilon), [square]
    if spec.name == "adam":
        g += decay * w
    m = spec.beta1 * s[0] + (1 - spec.beta1) * g
    square = spec.beta2 * s[1] + (1 - spec.beta2) * g * g
    mean, root = m / (1 - spec.beta1**step), math.sqrt(square / (1 - spec.beta2**step))
    w -= rate * decay * w if spec.name == "adamw" else 0.0
    return w - rate * mean / (root + spec.epsilon), [m, square]


def run(spec, steps, cuts=(), dtype=np.float64):
    """Parameters and state after `steps` steps on drawn gradients, each update cut at `cuts`."""
    rng, size = np.random.default_rng(0), 40
    optimizer = make_optimizer(spec)
    now = [rng.normal(size=size).astype(dtype), *(np.zeros(size, dtype) for _ in range(optimizer.state_vectors))]
    for step in range(1, steps + 1):
        gradient, after = rng.normal(size=size).astype(dtype), [np.full_like(vector, np.nan) for vector in now]
        before = [vector.copy() for vector in now]
        for start, end in zip((0, *cuts), (*cuts, size), strict=True):
            (w, *s), (out_w, *out_s) = ([vector[start:end] for vector in vectors] for vectors in (now, after))
            optimizer.update(step, spec.learning_rate, w, gradient[start:end], s, out_w, out_s)
        for vector, kept in zip(now, before, strict=True):
            np.testing.assert_array_equal(vector, kept)  # out of place
        now = after
    return now


@pytest.mark.parametrize("spec", SPECS, ids=identity)
def test_against_the_formulas_in_plain_python(spec):
    rng = np.random.default_rng(0)
    w = rng.normal(size=40)
    expected = [[float(number), [0.0] * make_optimizer(spec).state_vectors] for number in w]
    for step in range(1, 6):
        gradient = rng.normal(size=40)
        expected = [
            list(scalar_step(spec, step, e[0], float(g), e[1])) for e, g in zip(expected, gradient, strict=True)
        ]
    found = run(spec, 5)
    np.testing.assert_allclose(found[0], [e[0] for e in expected], rtol=1e-12)
    for k, vector in enumerate(found[1:]):
        np.testing.assert_allclose(vector, [e[1][k] for e in expected], rtol=1e-12)


@pytest.mark.parametrize("spec", SPECS, ids=identity)
def test_the_bits_do_not_depend_on_the_cuts(spec):
    for whole, cut in zip(run(spec, 3, (), np.float32), run(spec, 3, (1, 17, 30), np.float32), strict=True):
        np.testing.assert_array_equal(whole, cut)


@pytest.mark.parametrize("spec", SPECS, ids=identity)
def test_a_gradient_comes_as_a_sum_and_the_factor_that_makes_it_the_mean(spec):
    """A plain update takes the factor into its rate, the others into the gradient."""
    rng, optimizer, found = np.random.default_rng(0), make_optimizer(spec), []
    w, total, *state = rng.uniform(0.5, 1.0, (2 + optimizer.state_vectors, 40))
    for gradient, scale in ((total.copy(), 1 / 96), (total / 96, 1.0)):
        out = np.empty((1 + optimizer.state_vectors, 40))
        optimizer.update(3, 0.1, w, gradient, state, out[0], list(out[1:]), scale)
        found.append(out)
    np.testing.assert_allclose(*found, rtol=1e-12)


def test_plain_sgd_may_work_in_place():
    optimizer, w, g = make_optimizer(OptimizerSpec("sgd", 0.5)), np.array([1.0, 2.0]), np.array([2.0, -2.0])
    optimizer.update(1, 0.5, w, g, (), w, ())
    np.testing.assert_array_equal(w, [0.0, 3.0])


@pytest.mark.parametrize("spec", SPECS, ids=identity)
def test_no_allocation(spec):
    optimizer = make_optimizer(spec)
    vectors = [np.ones(50_000, np.float32) for _ in range(3 + 2 * optimizer.state_vectors)]
    w, g, out_w, *state = vectors
    old, new = state[: optimizer.state_vectors], state[optimizer.state_vectors :]
    optimizer.update(1, 0.1, w, g, old, out_w, new)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    optimizer.update(2, 0.1, w, g, old, out_w, new)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - before < 2000


@pytest.mark.parametrize("spec", SPECS, ids=identity)
def test_downhill(spec):
    """Each finds the minimum of 1/2 (w - 3)^2, penalties aside."""
    spec = OptimizerSpec(**(spec.to_json() | {"weight_decay": 0.0, "l1": 0.0, "learning_rate": 0.1}))
    optimizer = make_optimizer(spec)
    now = [np.zeros(1), *(np.zeros(1) for _ in range(optimizer.state_vectors))]
    rate = {"adagrad": 1.0}.get(spec.name, 0.1)
    for step in range(1, 400):
        after = [np.empty(1) for _ in now]
        optimizer.update(
            step, rate * 0.98**step if step > 200 else rate, now[0], now[0] - 3, now[1:], after[0], after[1:]
        )
        now = after
    assert now[0][0] == pytest.approx(3.0, abs=1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_overflow_passes_through_without_a_warning(name):
    optimizer = make_optimizer(OptimizerSpec(name, 0.1))
    w, g, out = np.ones(2, np.float32), np.array([np.inf, 1e30], np.float32), np.empty(2, np.float32)
    state = [np.zeros(2, np.float32) for _ in range(2 * optimizer.state_vectors)]
    optimizer.update(1, 1e30, w, g, state[: optimizer.state_vectors], out, state[optimizer.state_vectors :])
    assert not np.isfinite(out).all()


def test_l1_leaves_a_weight_at_0_alone():
    optimizer, out = make_optimizer(OptimizerSpec("sgd", 0.5, l1=0.25)), np.empty(4)
    optimizer.update(1, 0.5, np.array([1.0, -1.0, 0.0, -0.0]), np.zeros(4), (), out, ())
    np.testing.assert_array_equal(out, [0.875, -0.875, 0.0, 0.0])


@pytest.mark.parametrize("over", ["parameters", "gradient"])
def test_plain_sgd_may_write_over_its_parameters_or_over_the_gradient(over):
    rng, optimizer = np.random.default_rng(0), make_optimizer(OptimizerSpec("sgd", 0.1))
    parameters, gradient = rng.normal(size=40), rng.normal(size=40)
    expected = np.empty(40)
    optimizer.update(1, 0.1, parameters.copy(), gradient.copy(), (), expected, ())
    out = parameters if over == "parameters" else gradient
    optimizer.update(1, 0.1, parameters, gradient, (), out, ())
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("spec", [OptimizerSpec("sgd", 0.1, momentum=0.9), OptimizerSpec("adamw", 1e-3)], ids=identity)
def test_means_of_a_gradient_that_stays_zero_do_not_become_subnormal(spec):
    optimizer, size = make_optimizer(spec), 8
    now = [np.full(size, 0.5, np.float32), *(np.zeros(size, np.float32) for _ in range(optimizer.state_vectors))]
    after = [np.empty_like(vector) for vector in now]
    for step in range(1, 2001):
        gradient = np.full(size, 1.0 if step == 1 else 0.0, np.float32)
        optimizer.update(step, 1e-3, now[0], gradient, now[1:], after[0], after[1:])
        now, after = after, now
    for vector in now:
        assert (np.abs(vector) >= np.finfo(np.float32).tiny).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_without_a_gradient_stays_where_it_is(name):
    """With the least epsilon, too: what keeps means from sinking is nothing beside it."""
    optimizer = make_optimizer(OptimizerSpec(name, 1e-3, momentum=0.9, epsilon=LEAST_EPSILON))
    now = [np.zeros(3), *(np.zeros(3) for _ in range(optimizer.state_vectors))]
    for step in range(1, 101):
        after = [np.empty(3) for _ in now]
        optimizer.update(step, 1e-3, now[0], np.zeros(3), now[1:], after[0], after[1:])
        now = after
    np.testing.assert_allclose(now[0], 0.0, atol=1e-9)


@pytest.mark.parametrize("epsilon", [0.0, 1e-30, 0.99e-16])
def test_an_epsilon_below_which_it_would_move_is_refused(epsilon):
    with pytest.raises(SpecificationError) as caught:
        OptimizerSpec("adam", 1e-3, epsilon=epsilon)
    assert str(caught.value) == f"epsilon is {epsilon!r}; expected a finite number of at least 1e-16"


@pytest.mark.parametrize(("l1", "weight_decay"), [(0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
def test_the_penalties_are_the_gradient_of_what_they_add_to_the_loss(l1, weight_decay):
    """By central differences of l1 |w|_1 + weight_decay / 2 |w|^2: at rate 1 and without a loss SGD takes all of it."""

    def penalty(w):
        return l1 * np.abs(w).sum() + weight_decay / 2 * (w**2).sum()

    rng, h = np.random.default_rng(0), 1e-5
    w = rng.uniform(0.1, 2, 12) * rng.choice([-1.0, 1.0], 12)  # not at the kink
    optimizer, out = make_optimizer(OptimizerSpec("sgd", 1.0, l1=l1, weight_decay=weight_decay)), np.empty(12)
    optimizer.update(1, 1.0, w, np.zeros(12), (), out, ())
    differences = [(penalty(w + shift) - penalty(w - shift)) / (2 * h) for shift in h * np.eye(12)]
    np.testing.assert_allclose(w - out, differences, rtol=1e-8)
