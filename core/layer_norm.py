"""Layer normalization: each row's net inputs brought to mean 0 and variance 1, then scaled and shifted by unit."""

import numpy as np

from .operations import LocalDerivative, Operation
from .storage import ROWS, Array, Shape, Storage

_EPSILON = 1e-5  # added to the variance: a row of equal numbers has none


class LayerNorm(Operation):
    """z = g n + s with n = (x - mean) / sqrt(variance + 1e-5), over each row (Ba et al. 2016).

    x (ROWS, units), g (units,), s (units,), z (ROWS, units). With d = dL/dz g and <.> the mean over a row:
    dL/dx = (d - <d> - n <d n>) / sqrt(variance + 1e-5);  dL/dg = the sum over the rows of dL/dz n;  dL/ds = that of
    dL/dz.
    """

    reads_parents = False  # of x; g and s are parameters, which nobody overwrites

    def shape(self, *parents: Shape) -> Shape:
        if len(parents) != 3 or len(parents[0]) != 2 or parents[0][0] != ROWS:
            raise ValueError("expected x (rows, units), gain (units,), shift (units,)")
        if parents[1:] != (parents[0][1:],) * 2:
            raise ValueError("expected x (rows, units), gain (units,), shift (units,)")
        return parents[0]

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        """n and 1 / sqrt(variance + 1e-5), kept from forward; scratch; what means and sums are taken with."""
        shape, (_, units) = parents[0], parents[0]
        kept = storage.buffer(shape), storage.buffer((ROWS,))
        scratch = storage.scratch(shape), storage.scratch(shape), storage.scratch((ROWS,))
        return *kept, *scratch, storage.constant(1.0 / units, (units,)), storage.constant(1.0, (ROWS,))

    def forward(
        self,
        z: Array,
        x: Array,
        gain: Array,
        shift: Array,
        n: Array,
        root: Array,
        spread: Array,
        squares: Array,
        by_row: Array,
        means: Array,
        ones: Array,
    ) -> None:
        # The mean of x itself is inexact by its last digits, which is much beside a row that hardly varies: that of the
        # distances to one of the row is not, and equal numbers have none.
        np.copyto(spread, x[:, :1])
        np.subtract(x, spread, out=n)
        np.matmul(n, means, out=by_row)
        np.copyto(spread, by_row[:, None])
        np.subtract(n, spread, out=n)
        np.multiply(n, n, out=squares)
        np.matmul(squares, means, out=by_row)
        np.add(by_row, _EPSILON, out=by_row)
        np.sqrt(by_row, out=by_row)
        np.divide(1.0, by_row, out=root)
        np.copyto(spread, root[:, None])
        np.multiply(n, spread, out=n)
        np.copyto(spread, gain)
        np.multiply(n, spread, out=z)
        np.copyto(spread, shift)
        np.add(z, spread, out=z)

    def derivatives(self, *parents: Shape) -> tuple[LocalDerivative | None, ...]:
        return self.to_x, self.to_gain, self.to_shift

    def to_x(
        self,
        message: Array,
        signal: Array,
        z: Array,
        x: Array,
        gain: Array,
        shift: Array,
        n: Array,
        root: Array,
        spread: Array,
        products: Array,
        by_row: Array,
        means: Array,
        ones: Array,
    ) -> None:
        np.copyto(spread, gain)
        np.multiply(signal, spread, out=message)
        np.multiply(message, n, out=products)
        np.matmul(products, means, out=by_row)
        np.copyto(spread, by_row[:, None])
        np.multiply(spread, n, out=products)
        np.matmul(message, means, out=by_row)
        np.copyto(spread, by_row[:, None])
        np.subtract(message, spread, out=message)
        np.subtract(message, products, out=message)
        np.copyto(spread, root[:, None])
        np.multiply(message, spread, out=message)

    def to_gain(
        self, message: Array, signal: Array, z: Array, x: Array, gain: Array, shift: Array, n: Array, *others: Array
    ) -> None:
        _, _, products, *_, ones = others
        np.multiply(signal, n, out=products)
        np.matmul(ones, products, out=message)

    def to_shift(self, message: Array, signal: Array, *others: Array) -> None:
        np.matmul(others[-1], signal, out=message)
