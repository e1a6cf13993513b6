"""Elementary operations, element by element: sums, products, quotients, powers, a calculus course's functions."""

from dataclasses import dataclass

import numpy as np

from .operation import Binary, LocalDerivative, Operation, Unary
from .storage import Array, Shape, Storage


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


class Negate(Unary):
    """z = -x;  dz/dx = -1."""

    reads_parents = False

    def forward(self, z: Array, x: Array) -> None:
        np.negative(x, out=z)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array) -> None:
        np.negative(signal, out=message)


@dataclass(frozen=True)
class Scale(Unary):
    """z = c x for a constant c;  dz/dx = c."""

    factor: float
    reads_parents = False

    def forward(self, z: Array, x: Array) -> None:
        np.multiply(x, self.factor, out=z)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array) -> None:
        np.multiply(signal, self.factor, out=message)


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


class Sqrt(Unary):
    """z = sqrt x;  dz/dx = 1 / (2 z)."""

    reads_parents, reads_output = False, True

    def forward(self, z: Array, x: Array) -> None:
        np.sqrt(x, out=z)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array) -> None:
        np.divide(signal, z, out=message)
        np.multiply(message, 0.5, out=message)


@dataclass(frozen=True)
class Power(Unary):
    """z = x^n for a constant n;  dz/dx = n x^(n-1), 0 for n = 0 at x = 0, too."""

    exponent: float

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        return (storage.scratch(parents[0]),)

    def forward(self, z: Array, x: Array, scratch: Array) -> None:
        np.power(x, self.exponent, out=z)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array, scratch: Array) -> None:
        if self.exponent == 0.0:  # 0 x^-1 is not a number at 0
            message.fill(0.0)
            return
        np.power(x, self.exponent - 1.0, out=scratch)
        np.multiply(scratch, self.exponent, out=scratch)
        np.multiply(signal, scratch, out=message)
