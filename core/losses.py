"""Losses: how far a row's outputs are from its targets. Each stands beside the error signal that it sends.

A loss is a number a row; the rows are summed, with their weights, by the operation WeightedSum: row weights suit every
loss, and class weights are folded into them before (class_weights).
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .operations import LocalDerivative, Operation
from .specification import require_number
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


class Loss(Operation):
    """z = how far the outputs x (ROWS, units) are from the targets t, a number a row: z (ROWS,)."""

    classes: ClassVar[bool] = False  # whether t is int32 (ROWS,), class numbers; else it is of x's shape and dtype
    prediction: ClassVar[type[Operation] | None] = None  # what makes predictions of x; None: x is the prediction

    def units(self, outputs: int) -> int:
        """How many units x has where `outputs` numbers are predicted for a row."""
        return outputs

    def target_shape(self, outputs: int) -> Shape:
        """The shape of t."""
        return (ROWS,) if self.classes else (ROWS, outputs)

    def derivatives(self, *parents: Shape) -> tuple[LocalDerivative | None, ...]:
        return self.to_x, None

    @abstractmethod
    def to_x(self, *arrays: Any) -> None:
        """Write the error signal that the outputs receive."""


class CrossEntropy(Loss):
    """z = -ln p_t with p the softmax of x: x (ROWS, classes), t int32 (ROWS,) class numbers, z (ROWS,).

    dz/dx_i = p_i - y_i, where y is 1 at t and 0 elsewhere. Every t must be within [0, classes): it is not checked.
    """

    reads_parents = False  # the derivative has p, kept from forward
    classes, prediction = True, Softmax

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

    def to_x(
        self, message: Array, signal: Array, z: Array, x: Array, t: Array, p: Array, at: Array, *others: Array
    ) -> None:
        _, _, by_row, *_ = others
        np.copyto(message, signal[:, None])
        np.multiply(message, p, out=message)
        elements = message.reshape(-1)
        elements.take(at, out=by_row, mode="clip")
        np.subtract(by_row, signal, out=by_row)
        elements.put(at, by_row, mode="clip")


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
    z.dot(ones, total)
    np.copyto(spread, total[:, None])
    np.divide(z, spread, out=z)


class BinaryProbabilities(Operation):
    """z = (1 - p, p) with p = sigmoid(x): x (ROWS, 1), z (ROWS, 2). For predictions: no derivative of its own.

    With e = e^-|x| the smaller is e / (1 + e), to its last digit however small, and the larger 1 / (1 + e): one of
    e^min(-x, 0) and e^min(x, 0) is e, the other 1. Training takes the sigmoid fused with its loss, BinaryCrossEntropy.
    """

    def shape(self, *parents: Shape) -> Shape:
        if parents != ((ROWS, 1),):
            raise ValueError("expected x (rows, 1)")
        return (ROWS, 2)

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        """1 + e."""
        return (storage.scratch((ROWS,)),)

    def forward(self, z: Array, x: Array, total: Array) -> None:
        first, second = z[:, 0], z[:, 1]
        np.negative(x[:, 0], out=first)
        np.copyto(second, x[:, 0])
        np.minimum(z, 0.0, out=z)
        np.exp(z, out=z)
        np.add(first, second, out=total)
        np.divide(first, total, out=first)
        np.divide(second, total, out=second)

    def derivatives(self, *parents: Shape) -> tuple[LocalDerivative | None, ...]:
        return (None,)


class BinaryCrossEntropy(Loss):
    """z = -ln p_t with p_1 = sigmoid(x), p_0 = 1 - p_1: x (ROWS, 1), t int32 (ROWS,) class numbers 0 and 1, z (ROWS,).

    With y = -x for t = 1 and x for t = 0, z = ln(1 + e^y) and dz/dy = sigmoid(y) = 1 - e^-z. So dz/dx = p_1 - t, but
    without the cancellation in that difference.
    """

    classes, prediction = True, BinaryProbabilities
    reads_parents, reads_output = False, True

    def units(self, outputs: int) -> int:
        return 1

    def shape(self, *parents: Shape) -> Shape:
        if parents != ((ROWS, 1), (ROWS,)):
            raise ValueError("expected x (rows, 1) and t (rows,)")
        return (ROWS,)

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        """dy/dx, kept from forward; y and later dz/dy; zeros."""
        return storage.buffer((ROWS,)), storage.scratch((ROWS,)), storage.constant(0.0, (ROWS,))

    def forward(self, z: Array, x: Array, t: Array, sign: Array, y: Array, zeros: Array) -> None:
        np.copyto(sign, t)
        np.multiply(sign, -2.0, out=sign)
        np.add(sign, 1.0, out=sign)
        np.multiply(sign, x.reshape(-1), out=y)
        np.maximum(y, zeros, out=z)
        np.absolute(y, out=y)
        np.negative(y, out=y)
        np.exp(y, out=y)
        np.log1p(y, out=y)
        np.add(z, y, out=z)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array, t: Array, *workspace: Array) -> None:
        sign, slope, _ = workspace
        np.negative(z, out=slope)
        np.expm1(slope, out=slope)
        np.multiply(slope, sign, out=slope)
        np.multiply(slope, signal, out=slope)
        np.negative(slope, out=message.reshape(-1))


class SquaredError(Loss):
    """z = 1/2 sum_i (x_i - t_i)^2: x and t (ROWS, outputs), z (ROWS,).  dz/dx_i = x_i - t_i.

    The textbook's 1/2 is in: the loss that is reported is half the squared error.
    """

    reads_parents = False  # the derivative has the slopes, kept from forward

    def shape(self, *parents: Shape) -> Shape:
        if len(parents) != 2 or parents[0] != parents[1] or len(parents[0]) != 2 or parents[0][0] != ROWS:
            raise ValueError("expected x (rows, outputs) and t (rows, outputs)")
        return (ROWS,)

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        return storage.buffer(parents[0]), storage.scratch(parents[0]), storage.constant(0.5, parents[0][1:])

    def forward(self, z: Array, x: Array, t: Array, slopes: Array, *others: Array) -> None:
        squares, halves = others
        np.subtract(x, t, out=slopes)
        np.multiply(slopes, slopes, out=squares)
        squares.dot(halves, z)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array, t: Array, *workspace: Array) -> None:
        slopes, *_ = workspace
        np.copyto(message, signal[:, None])
        np.multiply(message, slopes, out=message)


@dataclass(frozen=True)
class Huber(SquaredError):
    """z = sum_i h(x_i - t_i), h(e) = e^2 / 2 up to |e| = delta and delta (|e| - delta / 2) beyond (Huber 1964).

    With s the error cut off at +-delta, h(e) = s (2 e - s) / 2 and dz/dx_i = s_i.
    """

    delta: float = 1.0

    def __post_init__(self) -> None:
        require_number("delta", self.delta, above=0.0)

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        shape = parents[0]
        limits = storage.constant(self.delta, shape), storage.constant(-self.delta, shape)
        return storage.buffer(shape), storage.scratch(shape), storage.constant(0.5, shape[1:]), *limits

    def forward(self, z: Array, x: Array, t: Array, slopes: Array, *others: Array) -> None:
        errors, halves, upper, lower = others
        np.subtract(x, t, out=errors)
        np.minimum(errors, upper, out=slopes)
        np.maximum(slopes, lower, out=slopes)
        np.add(errors, errors, out=errors)
        np.subtract(errors, slopes, out=errors)
        np.multiply(errors, slopes, out=errors)
        errors.dot(halves, z)


LOSSES: dict[str, type[Loss]] = {
    "cross_entropy": CrossEntropy,
    "binary_cross_entropy": BinaryCrossEntropy,
    "squared_error": SquaredError,
    "huber": Huber,
}
