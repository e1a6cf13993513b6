import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, r2_score, root_mean_squared_error

from core.metrics import metric_sums, metrics, zero_sums

RNG = np.random.default_rng(0)


def test_classification_by_hand():
    outputs = np.array([[0.2, 0.8], [0.9, 0.1], [0.4, 0.6]], np.float32)
    sums = metric_sums("cross_entropy", 6.0, outputs, np.array([1, 1, 1], np.int32), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(sums, [6.0, 6.0, 4.0])
    assert metrics("cross_entropy", sums) == {"loss": 1.0, "accuracy": 4 / 6}


def test_classification_is_scikit_learns():
    outputs, targets, weights = RNG.normal(size=(50, 4)), RNG.integers(0, 4, 50), RNG.uniform(0, 2, 50)
    found = metrics("cross_entropy", metric_sums("cross_entropy", 0.0, outputs, targets, weights))
    assert found["accuracy"] == pytest.approx(accuracy_score(targets, outputs.argmax(1), sample_weight=weights))


def test_binary_classification_is_scikit_learns():
    """From logits of class 1 and from both probabilities alike; the loss is the log loss."""
    logits, targets, weights = RNG.normal(size=(50, 1)), RNG.integers(0, 2, 50), RNG.uniform(0, 2, 50)
    p = 1 / (1 + np.exp(-logits[:, 0]))
    loss = -(weights * np.log(np.where(targets == 1, p, 1 - p))).sum()
    for outputs in (logits, np.stack([1 - p, p], axis=1)):
        found = metrics("binary_cross_entropy", metric_sums("binary_cross_entropy", loss, outputs, targets, weights))
        assert found["accuracy"] == pytest.approx(accuracy_score(targets, p > 0.5, sample_weight=weights))
        assert found["loss"] == pytest.approx(log_loss(targets, p, sample_weight=weights))


@pytest.mark.parametrize("loss", ["squared_error", "huber"])
@pytest.mark.parametrize("weights", [None, RNG.uniform(0, 2, 50)])
def test_regression_is_scikit_learns(weights, loss):
    outputs, targets = RNG.normal(size=(50, 2)), RNG.normal(size=(50, 2))
    scales = np.array([3.0, 0.5])
    found = metrics(loss, metric_sums(loss, 7.0, outputs, targets, weights), scales)
    weight = 50 if weights is None else weights.sum()
    expected = {
        "loss": 7.0 / weight,
        "rmse": root_mean_squared_error(targets * scales, outputs * scales, sample_weight=weights),
        "mae": mean_absolute_error(targets * scales, outputs * scales, sample_weight=weights),
        "r2": r2_score(targets, outputs, sample_weight=weights),
    }
    assert found == pytest.approx(expected, rel=1e-12)


def test_parts_add_up_to_the_whole():
    outputs, targets = RNG.normal(size=(50, 2)), RNG.normal(size=(50, 2))
    whole = metric_sums("squared_error", 3.0, outputs, targets, None)
    parts = zero_sums("squared_error", 2)
    for part in (slice(0, 20), slice(20, 20), slice(20, 50)):
        parts = parts + metric_sums("squared_error", 1.0, outputs[part], targets[part], None)
    np.testing.assert_allclose(parts, whole, rtol=1e-12)


def test_constant_target_explains_nothing():
    outputs = np.array([[1.0, 1.1], [1.2, 0.9]])
    sums = metric_sums("squared_error", 0.0, outputs, np.array([[0.3, 1.0], [0.3, 0.8]]), None)
    assert metrics("squared_error", sums)["r2"] == pytest.approx((0.0 + 1 - (0.01 + 0.01) / 0.02) / 2)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "squared_error", "huber"])
def test_no_rows_have_no_metrics(loss):
    found = metrics(loss, zero_sums(loss, 3))
    assert all(math.isnan(value) for value in found.values())
    assert set(found) == set(metrics(loss, zero_sums(loss, 3) + 1.0))
