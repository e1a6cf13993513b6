"""Max-norm: no unit's incoming weights get longer than a limit (Srebro et al. 2005; Srivastava et al. 2014).

A reduction over a unit's weights, which lie across the blocks of the flat vector. So it is no part of the elementwise
optimizers: it follows them, once all blocks of the step are written and before it is committed, in the new vector.
"""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .parameters import BLOCK, ParameterLayout


class MaxNorm:
    """Limits the columns of every matrix of `layout`: the weights (inputs, units). Biases and gains stay as they are.

    The sums are taken row by row in order, so layout and parameters alone decide the bits; `apply` allocates nothing.
    """

    def __init__(self, layout: ParameterLayout, dtype: DTypeLike, limit: float) -> None:
        self._limit, self._layout = limit, layout
        self._matrices = [name for name, shape in zip(layout.names, layout.shapes, strict=True) if len(shape) == 2]
        widest = max((shape[1] for shape in layout.shapes if len(shape) == 2), default=0)
        self._scratch = np.empty(max(widest, BLOCK), dtype)
        self._totals, self._part = np.empty(widest, dtype), np.empty(widest, dtype)

    @np.errstate(all="ignore")
    def apply(self, parameters: NDArray[Any]) -> None:
        """Shorten, in `parameters` (P,), each unit's weights that are longer than the limit to exactly that."""
        views = self._layout.views(parameters)
        for name in self._matrices:
            self._apply(views[name])

    def _apply(self, weights: NDArray[Any]) -> None:
        inputs, units = weights.shape
        rows = max(BLOCK // units, 1)
        totals, part = self._totals[:units], self._part[:units]
        totals.fill(0)
        for start in range(0, inputs, rows):
            some = weights[start : start + rows]
            squares = self._scratch[: some.size].reshape(some.shape)
            np.multiply(some, some, out=squares)
            np.add.reduce(squares, axis=0, out=part)
            np.add(totals, part, out=totals)
        np.sqrt(totals, out=totals)
        np.maximum(totals, self._limit, out=totals)
        np.divide(self._limit, totals, out=totals)
        for start in range(0, inputs, rows):
            some = weights[start : start + rows]
            factors = self._scratch[: some.size].reshape(some.shape)
            np.copyto(factors, totals)
            np.multiply(some, factors, out=some)
