"""Operations that change shapes: products of matrices, concatenation, sums. Those by element are in `elementary`."""

from functools import partial
from typing import Any

import numpy as np

from .elementary import Add, Cos, Divide, Exp, Log, Multiply, Negate, Power, Scale, Sin, Sqrt, Square, Subtract
from .operation import Binary, LocalDerivative, Operation, Unary
from .products import multiply, pieces
from .storage import ROWS, Array, Shape, Storage

__all__ = [
    "Add",
    "Affine",
    "Binary",
    "Concatenate",
    "Cos",
    "Divide",
    "Exp",
    "LocalDerivative",
    "Log",
    "MatMul",
    "Mean",
    "Multiply",
    "Negate",
    "Operation",
    "Power",
    "Scale",
    "Sin",
    "Sqrt",
    "Square",
    "Subtract",
    "Sum",
    "Unary",
    "WeightedSum",
]

# Where a product with the transpose of W is slower than one with W and both vectors turned (measured with OpenBLAS).
_FEW_ROWS = range(8, 49)
_LARGE = 1 << 14
# Up to so many rows, what BLAS spends on packing is worth cutting products into small ones. How fast those are depends
# on the cut: tiles of 16 or 48 units cost twice as much a unit as those of 64, as do narrow ones of turned products.
_ROWS_OF_PIECES = 32
_TILES_OF_UNITS, _TILES_OF_INPUTS, _TILES_OF_TURNED = (64, 32), (16,), (64,)


class Affine(Operation):
    """z = x W + b, a row at a time: x (ROWS, inputs), W (inputs, units), b (units,), z (ROWS, units).

    dL/dx = dL/dz W^T;  dL/dW = x^T dL/dz;  dL/db = the sum of dL/dz over the rows.
    """

    def shape(self, *parents: Shape) -> Shape:
        if len(parents) == 3 and all(parents):
            (*_, inputs), (*_, units) = parents[:2]
            if parents == ((ROWS, inputs), (inputs, units), (units,)):
                return (ROWS, units)
        raise ValueError("expected x (rows, inputs), W (inputs, units), b (units,)")

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Any, ...]:
        (_, inputs), (_, units), _ = parents
        rows = storage.rows
        largest = storage.small_product if rows <= _ROWS_OF_PIECES else 0
        return (
            storage.scratch((ROWS, units)),
            storage.constant(1.0, (ROWS,)),
            storage.scratch((units, ROWS)),
            storage.scratch((inputs, ROWS)),
            pieces(units, rows * inputs, largest, _TILES_OF_UNITS),
            pieces(inputs, rows * units, largest, _TILES_OF_TURNED),
            pieces(inputs, rows * units, largest, _TILES_OF_INPUTS),
        )

    def forward(self, z: Array, x: Array, w: Array, b: Array, spread: Array, *workspace: Any) -> None:
        *_, by_units, _, _ = workspace
        if by_units:
            multiply(w.T, x.T, z.T, by_units)
        else:
            multiply(x, w, z)
        np.copyto(spread, b)  # z + b would do the same through a buffer that NumPy allocates
        np.add(z, spread, z)

    def derivatives(self, *parents: Shape) -> tuple[LocalDerivative | None, ...]:
        return self.to_x, self.to_w, self.to_b

    def to_x(self, message: Array, signal: Array, z: Array, x: Array, w: Array, b: Array, *workspace: Any) -> None:
        if len(signal) in _FEW_ROWS and w.size >= _LARGE:  # BLAS would spend longer on turning W than on the product
            _, _, turned_signal, turned_message, _, by_turned, _ = workspace
            np.copyto(turned_signal, signal.T)
            multiply(w, turned_signal, turned_message, by_turned)
            np.copyto(message, turned_message.T)
        else:
            multiply(signal, w.T, message)

    def to_w(self, message: Array, signal: Array, z: Array, x: Array, *others: Any) -> None:
        if len(x) == 1:  # BLAS is slow at an outer product
            np.multiply(x.T, signal, message)
        else:
            multiply(x.T, signal, message, others[-1])

    def to_b(self, message: Array, signal: Array, z: Array, x: Array, w: Array, b: Array, *workspace: Any) -> None:
        _, ones, *_ = workspace
        ones.dot(signal, message)  # faster than a sum over the first axis


class MatMul(Operation):
    """z = x y: x (n, k), n being ROWS or a number, y (k, m), z (n, m).  dL/dx = dL/dz y^T;  dL/dy = x^T dL/dz."""

    def shape(self, *parents: Shape) -> Shape:
        if len(parents) != 2 or [len(parent) for parent in parents] != [2, 2]:
            raise ValueError("expected x (n, k) and y (k, m)")
        (n, k), (height, m) = parents
        if k != height or ROWS in (k, m):
            raise ValueError("expected x (n, k) and y (k, m)")
        return n, m

    def forward(self, z: Array, x: Array, y: Array) -> None:
        multiply(x, y, z)

    def derivatives(self, *parents: Shape) -> tuple[LocalDerivative | None, ...]:
        return self.to_x, self.to_y

    def to_x(self, message: Array, signal: Array, z: Array, x: Array, y: Array) -> None:
        multiply(signal, y.T, message)

    def to_y(self, message: Array, signal: Array, z: Array, x: Array, y: Array) -> None:
        multiply(x.T, signal, message)


class Concatenate(Operation):
    """z = (x1, x2, ...) along the last dimension; each parent's message is its part of dL/dz."""

    reads_parents = False

    def shape(self, *parents: Shape) -> Shape:
        if not parents or not all(parents) or any(parent[:-1] != parents[0][:-1] for parent in parents):
            raise ValueError("expected parents whose shapes differ in the last dimension alone")
        if any(parent[-1] == ROWS for parent in parents):
            raise ValueError("expected parents whose last dimension is not the rows'")
        return (*parents[0][:-1], sum(parent[-1] for parent in parents))

    def forward(self, z: Array, *parents: Array) -> None:
        start = 0
        for x in parents:
            end = start + x.shape[-1]
            np.copyto(z[..., start:end], x)
            start = end

    def derivatives(self, *parents: Shape) -> tuple[LocalDerivative | None, ...]:
        ends = np.cumsum([parent[-1] for parent in parents]).tolist()
        return tuple(
            partial(_send_part, slice(end - parent[-1], end)) for end, parent in zip(ends, parents, strict=True)
        )


def _send_part(part: slice, message: Array, signal: Array, *_: Array) -> None:
    np.copyto(message, signal[..., part])


class WeightedSum(Operation):
    """z = sum over the rows of w x: x (ROWS,), w (ROWS,) without a derivative, z a float64 scalar. dL/dx = dL/dz w.

    The sum is taken in float64, whatever the plan's dtype.
    """

    dtype = np.float64

    def shape(self, *parents: Shape) -> Shape:
        if parents != ((ROWS,), (ROWS,)):
            raise ValueError("expected x (rows,) and w (rows,)")
        return ()

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        return storage.scratch((ROWS,), np.float64), storage.scratch((ROWS,), np.float64)

    def forward(self, z: Array, x: Array, w: Array, wide_x: Array, wide_w: Array) -> None:
        np.copyto(wide_x, x)
        np.copyto(wide_w, w)
        wide_x.dot(wide_w, z)

    def derivatives(self, *parents: Shape) -> tuple[LocalDerivative | None, ...]:
        return self.to_x, None

    def to_x(self, message: Array, signal: Array, z: Array, x: Array, w: Array, wide_x: Array, wide_w: Array) -> None:
        np.multiply(w, float(signal), out=message)


class Sum(Operation):
    """z = sum_i x_i over the last dimension: x (..., n), z (...).  dz/dx_i = 1. Rows are summed by WeightedSum."""

    reads_parents = False

    def shape(self, *parents: Shape) -> Shape:
        if len(parents) != 1 or not parents[0] or parents[0][-1] == ROWS:
            raise ValueError("expected x (..., n)")
        return parents[0][:-1]

    def forward(self, z: Array, x: Array) -> None:
        np.add.reduce(x, axis=-1, out=z)

    def derivatives(self, *parents: Shape) -> tuple[LocalDerivative | None, ...]:
        return (self.to_x,)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array) -> None:
        np.copyto(message, signal[..., None])


class Mean(Sum):
    """z = 1/n sum_i x_i over the last dimension: x (..., n), z (...).  dz/dx_i = 1/n."""

    def forward(self, z: Array, x: Array) -> None:
        np.add.reduce(x, axis=-1, out=z)
        np.divide(z, x.shape[-1], out=z)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array) -> None:
        np.copyto(message, signal[..., None])
        np.divide(message, message.shape[-1], out=message)
