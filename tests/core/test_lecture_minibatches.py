"""The lecture, third part: minibatches estimate the full gradient, and gradient descent walks over a loss surface."""

import itertools

import numpy as np
import pytest

from core.network import Network, NetworkSpec, initial_parameters
from core.optimizers import OptimizerSpec, make_optimizer

RNG = np.random.default_rng(0)
SPEC = NetworkSpec(3, 2, (4,), activation="tanh", dtype="float64")
FEATURES, TARGETS = RNG.normal(size=(6, 3)), RNG.integers(0, 2, 6).astype(np.int32)
PARAMETERS = initial_parameters(SPEC, 0)
# A linear unit without nonlinearity, whose loss surface is a bowl with a known bottom: o = w x + b.
LINE = NetworkSpec(1, 1, (), loss="squared_error", dtype="float64")


def mean_gradient(rows, spec=SPEC, parameters=PARAMETERS, features=FEATURES, targets=TARGETS):
    network, gradient = Network(spec, len(rows)), np.empty_like(parameters)
    network.loss_and_gradient(parameters, gradient, features[rows], targets[rows])
    return gradient / len(rows)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_minibatch_gradient_is_unbiased(size):
    """The mean over every minibatch that could be drawn without replacement is the full gradient, exactly."""
    drawn = [mean_gradient(list(rows)) for rows in itertools.combinations(range(6), size)]
    np.testing.assert_allclose(np.mean(drawn, axis=0), mean_gradient(list(range(6))), rtol=1e-12, atol=1e-15)


def test_minibatch_gradients_scatter_the_less_the_larger_they_are():
    """Drawn with replacement, the variance of the mean of n rows is that of one row over n: here over all 6^n draws."""
    single = np.stack([mean_gradient([row]) for row in range(6)])
    variance = single.var(axis=0).sum()
    for size in (2, 3):
        drawn = np.stack([single[list(rows)].mean(axis=0) for rows in itertools.product(range(6), repeat=size)])
        assert drawn.var(axis=0).sum() == pytest.approx(variance / size, rel=1e-12)


def test_an_epoch_of_minibatches_adds_up_to_the_full_gradient():
    parts = np.split(np.random.default_rng(1).permutation(6), 3)
    total = sum(mean_gradient(rows) * len(rows) for rows in parts)
    np.testing.assert_allclose(total, 6 * mean_gradient(list(range(6))), rtol=1e-12, atol=1e-14)


def test_minibatches_of_one_by_hand():
    """Stochastic gradient descent, row after row: o = w x + b from w = b = 0, rate 1/2, rows (1, 2), (2, 1).

    Row 1: o = 0, o - t = -2: dL/dw = -2, dL/db = -2: w = b = 1.
    Row 2: o = 3, o - t = 2:  dL/dw = 4,  dL/db = 2:  w = -1, b = 0.
    """
    network, gradient, parameters = Network(LINE, 1), np.empty(2), np.zeros(2)
    optimizer = make_optimizer(OptimizerSpec("sgd", 0.5))
    seen = []
    for step, (x, t) in enumerate([(1.0, 2.0), (2.0, 1.0)], start=1):
        loss = network.loss_and_gradient(parameters, gradient, np.array([[x]]), np.array([[t]]))
        after = np.empty_like(parameters)
        optimizer.update(step, 0.5, parameters, gradient, (), after, ())
        parameters = after
        seen.append((loss, *parameters))
    assert seen == [(2.0, 1.0, 1.0), (2.0, -1.0, 0.0)]


# x = -1, 0, 1 and t = 2 x + 1 + (1, -2, 1) c have zero mean and zero correlation of x with the rest: the bottom is
# w = 2, b = 1, and the mean loss is 1/2 (2/3 (w - 2)^2 + (b - 1)^2) + c^2.
LINE_X, LINE_C = np.array([[-1.0], [0.0], [1.0]]), 0.25
LINE_T = 2 * LINE_X + 1 + LINE_C * np.array([[1.0], [-2.0], [1.0]])


def bowl(w, b):
    return 0.5 * (2 / 3 * (w - 2) ** 2 + (b - 1) ** 2) + LINE_C**2


def walk(rate, steps, start=(-1.0, 3.0)):
    """The parameters (w, b) and the mean loss at each step of gradient descent."""
    network, gradient, parameters = Network(LINE, 3), np.empty(2), np.array(start)
    optimizer, path, losses = make_optimizer(OptimizerSpec("sgd", rate)), [parameters], []
    for step in range(1, steps + 1):
        losses.append(network.loss_and_gradient(parameters, gradient, LINE_X, LINE_T) / 3)
        gradient /= 3
        after = np.empty_like(parameters)
        optimizer.update(step, rate, parameters, gradient, (), after, ())
        parameters = after
        path.append(parameters)
    return np.array(path), np.array(losses)


def test_the_loss_surface_of_a_linear_unit_is_the_bowl_that_it_should_be():
    path, losses = walk(0.5, 20)
    np.testing.assert_allclose(losses, bowl(*path[:-1].T), rtol=1e-13)


def test_path_of_gradient_descent_over_the_surface():
    """Along each axis of the bowl the distance to the bottom shrinks by the factor 1 - rate * curvature each step."""
    path, _ = walk(0.5, 20)
    k = np.arange(21)
    np.testing.assert_allclose(path[:, 0] - 2, -3 * (1 - 0.5 * 2 / 3) ** k, atol=1e-14)
    np.testing.assert_allclose(path[:, 1] - 1, 2 * (1 - 0.5 * 1) ** k, atol=1e-14)


def test_each_step_is_at_right_angles_to_the_contour_line():
    """Along the contour (-dL/db, dL/dw) the loss stays; the step has no part in that direction."""
    path, _ = walk(0.1, 10)
    steps, (w, b) = np.diff(path, axis=0), path[:-1].T
    contour = np.stack([-(b - 1), 2 / 3 * (w - 2)], axis=1)
    np.testing.assert_allclose((steps * contour).sum(axis=1), 0, atol=1e-15)


@pytest.mark.parametrize(("rate", "descends"), [(1.9, True), (2.1, False)])
def test_the_steepest_curvature_bounds_the_learning_rate(rate, descends):
    """The bowl's largest curvature is 1: it takes rates below 2 / 1. Beyond, every step ends higher than it began."""
    _, losses = walk(rate, 200, start=(2.0, 3.0))
    assert (np.diff(losses)[:50] < 0).all() == descends
    assert (losses[-1] == pytest.approx(LINE_C**2, rel=1e-6)) == descends
