import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from core.class_weights import balanced, fold
from core.network import Network, NetworkSpec, initial_parameters

RNG = np.random.default_rng(0)


def test_balanced_is_scikit_learns():
    targets = RNG.integers(0, 6, 50) // 2 % 3
    np.testing.assert_allclose(balanced(targets, 3), compute_class_weight("balanced", classes=np.arange(3), y=targets))
    np.testing.assert_array_equal(balanced(np.array([0, 0, 2]), 3), [0.5, 1.0, 1.0])


def test_fold():
    targets = np.array([0, 1, 1], np.int32)
    np.testing.assert_array_equal(fold((2.0, 0.5), targets, None), np.array([2, 0.5, 0.5], np.float32))
    np.testing.assert_array_equal(fold((2.0, 0.5), targets, [1, 4, 0]), np.array([2, 2, 0], np.float32))


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_a_class_of_weight_two_is_its_rows_twice(loss):
    spec = NetworkSpec(3, 2, (4,), "tanh", loss=loss)
    network, parameters = Network(spec, 8), initial_parameters(spec, 0)
    x, t = RNG.normal(size=(4, 3)).astype(np.float32), np.array([0, 1, 1, 0], np.int32)
    weighted, repeated = np.empty_like(parameters), np.empty_like(parameters)
    first = network.loss_and_gradient(parameters, weighted, x, t, fold((1.0, 2.0), t, None))
    rows = [0, 1, 1, 2, 2, 3]
    assert first == pytest.approx(network.loss_and_gradient(parameters, repeated, x[rows], t[rows]), rel=1e-6)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-4, atol=1e-6)
