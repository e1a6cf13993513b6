"""Class weights: how much a row counts by its class. They are folded into the row weights before training.

So no loss knows of them: the weighted mean over a step's rows is by the folded weights, as is its divisor. Validation
and test keep the row weights alone, for their figures to be those of the data as it is.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def balanced(targets: NDArray[Any], classes: int) -> NDArray[np.float64]:
    """n / (classes * n_k) for each class k, n_k of the n rows of `targets` (class numbers) being its; 1.0 if none is.

    Every class then has the same weight in all, and the n rows the weight n, if all classes occur.
    """
    counts = np.bincount(targets, minlength=classes)
    return np.where(counts > 0, len(targets) / (classes * np.maximum(counts, 1)), 1.0)


def fold(class_weights: Sequence[float] | NDArray[Any], targets: NDArray[Any], weights: ArrayLike | None) -> Any:
    """The row weights (n,), float32: `weights` (n,), None meaning ones, times the weight of the row's class."""
    folded = np.asarray(class_weights, np.float64)[targets]
    return (folded if weights is None else folded * np.asarray(weights)).astype(np.float32)
