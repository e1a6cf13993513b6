"""Elementary operations, each beside its local derivative. An operation knows nothing of the graph that it is part of.

`forward(z, x, ...)` writes the node's value z from the values of its parents. For each parent x there is a function
`to_x(message, signal, z, x, ...)`: given the error signal dL/dz that has arrived at the node, it writes the message

    dL/dz * dz/dx

that the node sends to that parent. A parent with several children adds up what they send: the multivariate chain rule.
All arrays are the plan's; the workspace that an operation asks for comes last among the arguments. No call allocates.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .storage import ROWS, Array, Shape, Storage

LocalDerivative = Callable[..., None]

# Where a product with the transpose of W is slower than one with W and both vectors turned (measured with OpenBLAS).
_FEW_ROWS = range(8, 49)
_LARGE = 1 << 14


class Operation(ABC):
    """What a node computes. Its attributes tell the planner which buffers may be shared."""

    # Only the first parent has a derivative, and z has its shape; message and signal of `to_x` may be the same array.
    elementwise = False
    reads_parents = True  # some local derivative needs the value of a parent
    reads_output = False  # some local derivative needs z
    dtype: type[np.generic] | None = None  # of z, if it is not the plan's: for a loss, the end of a graph

    @abstractmethod
    def shape(self, *parents: Shape) -> Shape:
        """The shape of z; raises ValueError, saying what was expected, where the parents' shapes do not fit."""

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        """The arrays that forward and derivatives need besides z and the parents' values."""
        return ()

    @abstractmethod
    def forward(self, *arrays: Any) -> None:
        """Write z, the first of `arrays`, from the others."""

    @abstractmethod
    def derivatives(self, *parents: Shape) -> tuple[LocalDerivative | None, ...]:
        """The function that writes each parent's message; None for a parent without a derivative (a class number)."""


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

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        (_, inputs), (_, units), _ = parents
        spread, ones = storage.scratch((ROWS, units)), storage.constant(1.0, (ROWS,))
        return spread, ones, storage.scratch((units, ROWS)), storage.scratch((inputs, ROWS))

    def forward(self, z: Array, x: Array, w: Array, b: Array, spread: Array, *_: Array) -> None:
        np.matmul(x, w, out=z)
        np.copyto(spread, b)  # z + b would do the same through a buffer that NumPy allocates
        np.add(z, spread, out=z)

    def derivatives(self, *parents: Shape) -> tuple[LocalDerivative | None, ...]:
        return self.to_x, self.to_w, self.to_b

    def to_x(self, message: Array, signal: Array, z: Array, x: Array, w: Array, b: Array, *workspace: Array) -> None:
        if len(signal) in _FEW_ROWS and w.size >= _LARGE:  # BLAS would spend longer on turning W than on the product
            _, _, turned_signal, turned_message = workspace
            np.copyto(turned_signal, signal.T)
            np.matmul(w, turned_signal, out=turned_message)
            np.copyto(message, turned_message.T)
        else:
            np.matmul(signal, w.T, out=message)

    def to_w(self, message: Array, signal: Array, z: Array, x: Array, *_: Array) -> None:
        if len(x) == 1:  # BLAS is slow at an outer product
            np.multiply(x.T, signal, out=message)
        else:
            np.matmul(x.T, signal, out=message)

    def to_b(
        self,
        message: Array,
        signal: Array,
        z: Array,
        x: Array,
        w: Array,
        b: Array,
        spread: Array,
        ones: Array,
        *_: Array,
    ) -> None:
        np.matmul(ones, signal, out=message)  # faster than a sum over the first axis


class Concatenate(Operation):
    """z = (x1, x2, ...) along the last dimension; each parent's message is its part of dL/dz."""

    reads_parents = False

    def shape(self, *parents: Shape) -> Shape:
        if not parents or not all(parents) or any(parent[:-1] != parents[0][:-1] for parent in parents):
            raise ValueError("expected parents whose shapes differ in the last dimension alone")
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
        np.multiply(wide_x, wide_w, out=wide_x)
        np.add.reduce(wide_x, out=z)

    def derivatives(self, *parents: Shape) -> tuple[LocalDerivative | None, ...]:
        return self.to_x, None

    def to_x(self, message: Array, signal: Array, z: Array, x: Array, w: Array, wide_x: Array, wide_w: Array) -> None:
        np.multiply(w, float(signal), out=message)


class Binary(Operation):
    """z = f(x, y), element by element, of two parents of one shape."""

    def shape(self, *parents: Shape) -> Shape:
        if len(parents) != 2 or parents[0] != parents[1]:
            raise ValueError("expected two parents of one shape")
        return parents[0]

    def derivatives(self, *parents: Shape) -> tuple[LocalDerivative | None, ...]:
        return self.to_x, self.to_y

    @abstractmethod
    def to_x(self, *arrays: Any) -> None:
        """Write the message to the first parent."""

    @abstractmethod
    def to_y(self, *arrays: Any) -> None:
        """Write the message to the second parent."""


class Add(Operation):
    """z = x1 + x2 + ..., of two or more parents of one shape;  dz/dx1 = dz/dx2 = 1."""

    reads_parents = False

    def shape(self, *parents: Shape) -> Shape:
        if len(parents) < 2 or len(set(parents)) > 1:
            raise ValueError("expected two or more parents of one shape")
        return parents[0]

    def forward(self, z: Array, x: Array, y: Array, *others: Array) -> None:
        np.add(x, y, out=z)
        for other in others:
            np.add(z, other, out=z)

    def derivatives(self, *parents: Shape) -> tuple[LocalDerivative | None, ...]:
        return (_pass_on,) * len(parents)


def _pass_on(message: Array, signal: Array, *_: Array) -> None:
    np.copyto(message, signal)


class Subtract(Binary):
    """z = x - y;  dz/dx = 1, dz/dy = -1."""

    reads_parents = False

    def forward(self, z: Array, x: Array, y: Array) -> None:
        np.subtract(x, y, out=z)

    def to_x(self, message: Array, signal: Array, *_: Array) -> None:
        np.copyto(message, signal)

    def to_y(self, message: Array, signal: Array, *_: Array) -> None:
        np.negative(signal, out=message)


class Multiply(Binary):
    """z = x y;  dz/dx = y, dz/dy = x."""

    def forward(self, z: Array, x: Array, y: Array) -> None:
        np.multiply(x, y, out=z)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array, y: Array) -> None:
        np.multiply(signal, y, out=message)

    def to_y(self, message: Array, signal: Array, z: Array, x: Array, y: Array) -> None:
        np.multiply(signal, x, out=message)


class Divide(Binary):
    """z = x / y;  dz/dx = 1 / y, dz/dy = -z / y."""

    reads_output = True

    def forward(self, z: Array, x: Array, y: Array) -> None:
        np.divide(x, y, out=z)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array, y: Array) -> None:
        np.divide(signal, y, out=message)

    def to_y(self, message: Array, signal: Array, z: Array, x: Array, y: Array) -> None:
        np.divide(z, y, out=message)
        np.multiply(message, signal, out=message)
        np.negative(message, out=message)


class Unary(Operation):
    """z = f(x), element by element."""

    elementwise = True

    def shape(self, *parents: Shape) -> Shape:
        if len(parents) != 1:
            raise ValueError("expected one parent")
        return parents[0]

    def derivatives(self, *parents: Shape) -> tuple[LocalDerivative | None, ...]:
        return (self.to_x,)

    @abstractmethod
    def to_x(self, *arrays: Any) -> None:
        """Write the message to the parent; `message` may be `signal`."""


class Exp(Unary):
    """z = e^x;  dz/dx = z."""

    reads_parents, reads_output = False, True

    def forward(self, z: Array, x: Array) -> None:
        np.exp(x, out=z)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array) -> None:
        np.multiply(signal, z, out=message)


class Log(Unary):
    """z = ln x;  dz/dx = 1 / x."""

    def forward(self, z: Array, x: Array) -> None:
        np.log(x, out=z)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array) -> None:
        np.divide(signal, x, out=message)


class Square(Unary):
    """z = x^2;  dz/dx = 2 x."""

    def forward(self, z: Array, x: Array) -> None:
        np.multiply(x, x, out=z)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array) -> None:
        np.multiply(signal, x, out=message)
        np.multiply(message, 2.0, out=message)


class Sin(Unary):
    """z = sin x;  dz/dx = cos x."""

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        return (storage.scratch(parents[0]),)

    def forward(self, z: Array, x: Array, scratch: Array) -> None:
        np.sin(x, out=z)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array, scratch: Array) -> None:
        np.cos(x, out=scratch)
        np.multiply(signal, scratch, out=message)


class Cos(Unary):
    """z = cos x;  dz/dx = -sin x."""

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        return (storage.scratch(parents[0]),)

    def forward(self, z: Array, x: Array, scratch: Array) -> None:
        np.cos(x, out=z)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array, scratch: Array) -> None:
        np.sin(x, out=scratch)
        np.multiply(signal, scratch, out=message)
        np.negative(message, out=message)
