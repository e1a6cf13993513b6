"""Noise on the features: Gaussian, a function of seed, step and shard, there in training alone."""

import numpy as np
import pytest

from core.draw import Draw
from core.network import Network, NetworkSpec, NodeSpec, initial_parameters, summary
from core.noise import Noise
from core.storage import Storage

RNG = np.random.default_rng(0)
GRAPH = (NodeSpec("a", ("features",), units=3), NodeSpec("b", ("a", "features"), "concatenate"))


def noise_of(deviation, draw, rows=64, inputs=31, dtype=np.float32):
    storage = Storage(dtype)
    storage.start_plan(rows)
    noise = Noise(storage, inputs, deviation)
    noise.draw(Draw(*draw))
    return noise.array


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_gaussian_of_the_given_deviation(dtype):
    noise = noise_of(0.3, (0, 1, 0), 1000, 100, dtype).astype(np.float64)
    bound = 4 / np.sqrt(noise.size)
    assert noise.mean() == pytest.approx(0, abs=0.3 * bound)
    assert noise.std() == pytest.approx(0.3, rel=bound)
    assert (np.abs(noise) < 0.3).mean() == pytest.approx(0.6827, abs=bound)
    assert abs(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]) < bound


def test_it_is_a_function_of_seed_step_and_shard():
    first = noise_of(0.5, (3, 4, 5))
    np.testing.assert_array_equal(first, noise_of(0.5, (3, 4, 5)))
    for other in ((2, 4, 5), (3, 3, 5), (3, 4, 4), (4, 3, 5)):
        assert abs(np.corrcoef(first.ravel(), noise_of(0.5, other).ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("layers", [{"hidden": (4,)}, {"graph": GRAPH}], ids=["hidden", "graph"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_every_layer_that_takes_features_takes_them_noisy_in_training_alone(layers, dropout):
    quiet = NetworkSpec(3, 2, **layers, input_dropout=dropout)
    noisy = NetworkSpec(3, 2, **layers, input_dropout=dropout, input_noise=0.5)
    parameters = initial_parameters(quiet, 0)
    np.testing.assert_array_equal(parameters, initial_parameters(noisy, 0))
    x, y = RNG.normal(size=(8, 3)).astype(np.float32), RNG.integers(0, 2, 8).astype(np.int32)
    disturbed = x + noise_of(0.5, (1, 2, 3), 8, 3)

    network, expected, found = Network(noisy, 8), np.empty_like(parameters), np.empty_like(parameters)
    loss = Network(quiet, 8).loss_and_gradient(parameters, expected, disturbed, y, draw=Draw(1, 2, 3))
    assert network.loss_and_gradient(parameters, found, x, y, draw=Draw(1, 2, 3)) == loss
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(network.predict(parameters, x), Network(quiet, 8).predict(parameters, x))
    np.testing.assert_array_equal(network.evaluate(parameters, x, y), Network(quiet, 8).evaluate(parameters, x, y))


def test_it_falls_with_the_learning_rate():
    np.testing.assert_array_equal(noise_of(0.5, (3, 4, 5, 0.25)), noise_of(0.125, (3, 4, 5)))


def test_it_is_a_layer_without_parameters_in_the_summary():
    assert summary(NetworkSpec(3, 2, (4,), input_noise=0.1))[0]["parameters"] == 0
    assert summary(NetworkSpec(3, 2, (4,), input_noise=0.1))[1:] == summary(NetworkSpec(3, 2, (4,)))
