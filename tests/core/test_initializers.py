import numpy as np
import pytest

from core.initializers import INITIALIZERS, glorot, he, lecun, orthogonal


def test_glorot_is_uniform_with_variance_two_over_fans():
    weights = glorot(np.random.default_rng(0), 300, 500)
    bound = np.sqrt(6 / 800)
    assert np.abs(weights).max() <= bound
    assert np.abs(weights).max() > 0.999 * bound
    assert weights.var() == pytest.approx(2 / 800, rel=0.01)
    assert weights.mean() == pytest.approx(0, abs=1e-3)


def test_he_is_normal_with_variance_two_over_inputs():
    weights = he(np.random.default_rng(0), 300, 500)
    assert weights.var() == pytest.approx(2 / 300, rel=0.02)
    within = np.abs(weights) < np.sqrt(2 / 300)
    assert within.mean() == pytest.approx(0.6827, abs=0.005)


def test_lecun_is_normal_with_variance_one_over_inputs():
    weights = lecun(np.random.default_rng(0), 300, 500)
    assert weights.var() == pytest.approx(1 / 300, rel=0.02)
    assert (np.abs(weights) < np.sqrt(1 / 300)).mean() == pytest.approx(0.6827, abs=0.005)


@pytest.mark.parametrize(("inputs", "units"), [(30, 20), (20, 30), (25, 25), (1, 4)])
def test_orthogonal_is_orthonormal_along_the_shorter_side(inputs, units):
    weights = orthogonal(np.random.default_rng(0), inputs, units)
    assert weights.shape == (inputs, units)
    products = weights.T @ weights if inputs >= units else weights @ weights.T
    np.testing.assert_allclose(products, np.eye(min(inputs, units)), atol=1e-14)


def test_orthogonal_is_uniform_over_signs():
    rng = np.random.default_rng(0)
    first = [orthogonal(rng, 3, 3)[0, 0] for _ in range(400)]
    assert np.mean(first) == pytest.approx(0, abs=4 * np.sqrt(1 / 3 / 400))


@pytest.mark.parametrize("name", INITIALIZERS)
def test_shape_and_source_of_randomness(name):
    first, second = (INITIALIZERS[name](np.random.default_rng(1), 3, 5) for _ in range(2))
    assert first.shape == (3, 5)
    np.testing.assert_array_equal(first, second)


def test_signals_keep_their_spread_through_deep_networks():
    """Ten layers: He keeps the spread of rectified signals, Glorot's half as much variance loses 2^5 of it."""
    rng = np.random.default_rng(0)

    def spread(initialize):
        z = rng.normal(size=(64, 256))
        for _ in range(10):
            z = np.maximum(z @ initialize(rng, 256, 256), 0)
        return np.sqrt((z**2).mean())

    assert 0.5 < spread(he) < 2
    assert spread(glorot) < 0.1
