"""Losses: how far a row's outputs are from its targets. Each stands beside the error signal that it sends.

A loss is a number a row; the rows are summed, with their weights, by the operation WeightedSum.
"""

import numpy as np

from .operations import LocalDerivative, Operation
from .storage import ROWS, Array, Shape, Storage

# Up to this many classes a row's maximum is found faster in a transposed copy, over the first dimension.
_FEW_CLASSES = 100


class Softmax(Operation):
    """z_i = e^(x_i) / sum_j e^(x_j), row by row: x and z (ROWS, classes). For predictions: no derivative of its own.

    Training takes the softmax fused with its loss, CrossEntropy.
    """

    def shape(self, *parents: Shape) -> Shape:
        if len(parents) != 1 or len(parents[0]) != 2 or parents[0][0] != ROWS:
            raise ValueError("expected x (rows, classes)")
        return parents[0]

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        return _softmax_workspace(storage, parents[0])

    def forward(self, z: Array, x: Array, turned: Array, by_row: Array, spread: Array, ones: Array) -> None:
        _shift(z, x, turned, by_row)
        _normalize(z, by_row, spread, ones)

    def derivatives(self, *parents: Shape) -> tuple[LocalDerivative | None, ...]:
        return (None,)


class CrossEntropy(Operation):
    """z = -ln p_t with p the softmax of x: x (ROWS, classes), t int32 (ROWS,) class numbers, z (ROWS,).

    dz/dx_i = p_i - y_i, where y is 1 at t and 0 elsewhere. Every t must be within [0, classes): it is not checked.
    """

    reads_parents = False  # the derivative has p, kept from forward

    def shape(self, *parents: Shape) -> Shape:
        if len(parents) != 2 or len(parents[0]) != 2 or parents[0][0] != ROWS or parents[1] != (ROWS,):
            raise ValueError("expected x (rows, classes) and t (rows,)")
        return (ROWS,)

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        """p; where in p, taken as one vector, the targets' elements are; where its rows start; the softmax's."""
        (_, classes), starts = parents[0], np.arange(storage.rows, dtype=np.intp) * parents[0][1]
        p, at = storage.buffer((ROWS, classes)), storage.buffer((ROWS,), np.intp)
        return p, at, starts, *_softmax_workspace(storage, parents[0])

    def forward(self, z: Array, x: Array, t: Array, p: Array, at: Array, starts: Array, *softmax: Array) -> None:
        turned, by_row, spread, ones = softmax
        np.copyto(at, t)
        np.add(at, starts, out=at)
        _shift(p, x, turned, by_row)
        p.reshape(-1).take(at, out=z, mode="clip")
        _normalize(p, by_row, spread, ones)
        np.log(by_row, out=by_row)
        np.subtract(by_row, z, out=z)  # ln(sum_j e^(x_j)) - x_t

    def derivatives(self, *parents: Shape) -> tuple[LocalDerivative | None, ...]:
        return self.to_x, None

    def to_x(
        self, message: Array, signal: Array, z: Array, x: Array, t: Array, p: Array, at: Array, *others: Array
    ) -> None:
        _, _, by_row, *_ = others
        np.copyto(message, signal[:, None])
        np.multiply(message, p, out=message)
        elements = message.reshape(-1)
        elements.take(at, out=by_row, mode="clip")
        np.subtract(by_row, signal, out=by_row)
        elements[at] = by_row


def _softmax_workspace(storage: Storage, shape: Shape) -> tuple[Array, ...]:
    """Scratch of the transposed shape, of one number a row, and of the shape itself; ones to sum a row with."""
    ones = storage.constant(1.0, shape[1:])
    return storage.scratch(shape[::-1]), storage.scratch((ROWS,)), storage.scratch(shape), ones


def _shift(z: Array, x: Array, turned: Array, maximum: Array) -> None:
    """z = x less each row's maximum: the softmax is the same, and no exponential overflows."""
    if len(turned) <= _FEW_CLASSES:
        np.copyto(turned, x.T)
        np.maximum.reduce(turned, axis=0, out=maximum)
    else:
        np.maximum.reduce(x, axis=1, out=maximum)
    np.copyto(z, maximum[:, None])
    np.subtract(x, z, out=z)


def _normalize(z: Array, total: Array, spread: Array, ones: Array) -> None:
    """z = e^z / total with total the sum of e^z over each row."""
    np.exp(z, out=z)
    np.matmul(z, ones, out=total)
    np.copyto(spread, total[:, None])
    np.divide(z, spread, out=z)


class SquaredError(Operation):
    """z = 1/2 sum_i (x_i - t_i)^2: x and t (ROWS, outputs), z (ROWS,).  dz/dx_i = x_i - t_i.

    The textbook's 1/2 is in: the loss that is reported is half the squared error.
    """

    reads_parents = False  # the derivative has the errors, kept from forward

    def shape(self, *parents: Shape) -> Shape:
        if len(parents) != 2 or parents[0] != parents[1] or len(parents[0]) != 2 or parents[0][0] != ROWS:
            raise ValueError("expected x (rows, outputs) and t (rows, outputs)")
        return (ROWS,)

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        return storage.buffer(parents[0]), storage.scratch(parents[0]), storage.constant(0.5, parents[0][1:])

    def forward(self, z: Array, x: Array, t: Array, errors: Array, squares: Array, halves: Array) -> None:
        np.subtract(x, t, out=errors)
        np.multiply(errors, errors, out=squares)
        np.matmul(squares, halves, out=z)

    def derivatives(self, *parents: Shape) -> tuple[LocalDerivative | None, ...]:
        return self.to_x, None

    def to_x(self, message: Array, signal: Array, z: Array, x: Array, t: Array, errors: Array, *_: Array) -> None:
        np.copyto(message, signal[:, None])
        np.multiply(message, errors, out=message)


LOSSES: dict[str, type[Operation]] = {"cross_entropy": CrossEntropy, "squared_error": SquaredError}
