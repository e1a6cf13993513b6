"""Metrics as sums: one float64 vector a part of a split, merged by adding the parts' vectors in shard order.

classification (cross_entropy, binary_cross_entropy)   [weight, loss, weight of the correctly classified]
regression (squared_error, huber)   [weight, loss], then an entry an output for each of e^2, |e|, t, t^2 (e the error, t
the target)

Each is a sum over rows, weighted by the row. The mean loss of a classification is its log loss. The area under the ROC
curve is not here: it compares rows with one another, and only its approximation by a histogram is a sum over rows.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sums = NDArray[np.float64]
CLASSIFICATION = ("cross_entropy", "binary_cross_entropy")


def zero_sums(loss: str, outputs: int) -> Sums:
    """The sums over no rows."""
    return np.zeros(3 if loss in CLASSIFICATION else 2 + 4 * outputs)


def metric_sums(
    loss: str, loss_sum: float, outputs: NDArray[Any], targets: NDArray[Any], weights: NDArray[Any] | None
) -> Sums:
    """The sums over n rows.

    `loss_sum` is the weighted sum of the rows' losses; `outputs` (n, outputs) are logits, probabilities or values, for
    binary_cross_entropy also (n, 1), the logit of class 1; `targets` class numbers (n,) or values (n, outputs);
    `weights` (n,), None meaning ones.
    """
    w = np.ones(len(outputs)) if weights is None else weights.astype(np.float64)
    if loss in CLASSIFICATION:
        found = outputs.argmax(axis=1) if outputs.shape[1] > 1 else outputs[:, 0] > 0
        return np.array([w.sum(), loss_sum, w[found == targets].sum()])
    t = targets.astype(np.float64)
    e = outputs - t
    columns = [w @ (e * e), w @ np.abs(e), w @ t, w @ (t * t)]
    return np.concatenate([[w.sum(), loss_sum], *columns])


def metrics(loss: str, sums: Sums, target_scales: NDArray[np.float64] | None = None) -> dict[str, float]:
    """The metrics of a split from the sums of all its parts; NaN where the total weight is 0.

    Classification: loss (mean), accuracy. Regression: loss (mean, of standardized targets), and the means over the
    outputs of rmse, mae (in the user's units: times `target_scales` (outputs,)) and r2 (0.0 for a constant target).
    """
    weight, loss_sum = float(sums[0]), float(sums[1])
    if weight == 0.0:
        return dict.fromkeys(
            ("loss", "accuracy") if loss in CLASSIFICATION else ("loss", "rmse", "mae", "r2"), math.nan
        )
    if loss in CLASSIFICATION:
        return {"loss": loss_sum / weight, "accuracy": float(sums[2]) / weight}
    squares, absolutes, targets, target_squares = sums[2:].reshape(4, -1) / weight
    scales = np.ones(len(squares)) if target_scales is None else target_scales
    variance = target_squares - targets**2
    varied = variance > 1e-12 * target_squares  # what is left of a constant is rounding
    explained = np.where(varied, 1.0 - squares / np.where(varied, variance, 1.0), 0.0)
    return {
        "loss": loss_sum / weight,
        "rmse": float(np.mean(np.sqrt(squares) * scales)),
        "mae": float(np.mean(absolutes * scales)),
        "r2": float(np.mean(explained)),
    }
