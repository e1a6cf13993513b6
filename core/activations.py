"""Activations: how a unit turns its net input x into its output z. Each stands beside its derivative.

The derivatives are written in terms of the output, or of what forward has kept, so that the output may take the place
of the input in memory, and none of them overflows.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .erf import normal_tail
from .operations import Unary
from .specification import require_number
from .storage import Array, Shape, Storage


class Activation(Unary):
    """z = f(x), element by element, whose derivative needs z but not x."""

    reads_parents, reads_output = False, True
    initializer: ClassVar[str] = "glorot"  # what suits the weights before it


class Identity(Activation):
    """z = x;  dz/dx = 1."""

    reads_output = False

    def forward(self, z: Array, x: Array) -> None:
        np.copyto(z, x)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array) -> None:
        np.copyto(message, signal)


class Sigmoid(Activation):
    """z = 1 / (1 + e^-x) = (1 + tanh(x / 2)) / 2;  dz/dx = z (1 - z)."""

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        return (storage.scratch(parents[0]),)

    def forward(self, z: Array, x: Array, slope: Array) -> None:
        np.multiply(x, 0.5, out=z)
        np.tanh(z, out=z)
        np.multiply(z, 0.5, out=z)
        np.add(z, 0.5, out=z)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array, slope: Array) -> None:
        np.subtract(1.0, z, out=slope)
        np.multiply(slope, z, out=slope)
        np.multiply(signal, slope, out=message)


class Tanh(Activation):
    """z = tanh x;  dz/dx = 1 - z^2."""

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        return (storage.scratch(parents[0]),)

    def forward(self, z: Array, x: Array, slope: Array) -> None:
        np.tanh(x, out=z)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array, slope: Array) -> None:
        np.multiply(z, z, out=slope)
        np.subtract(1.0, slope, out=slope)
        np.multiply(signal, slope, out=message)


class ReLU(Activation):
    """z = max(x, 0);  dz/dx = 1 where z > 0, else 0."""

    initializer = "he"

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        shape = parents[0]
        zeros, zero = storage.constant(0.0, shape), storage.constant(0.0, ())  # greater, unlike maximum, likes a number
        return zeros, zero, storage.scratch(shape, np.bool_), storage.scratch(shape)

    def forward(self, z: Array, x: Array, zeros: Array, zero: Array, active: Array, slope: Array) -> None:
        np.maximum(x, zeros, out=z)

    def to_x(
        self,
        message: Array,
        signal: Array,
        z: Array,
        x: Array,
        zeros: Array,
        zero: Array,
        active: Array,
        slope: Array,
    ) -> None:
        np.greater(z, zero, out=active)
        np.copyto(slope, active)  # a product of floats and bools would convert through a buffer of its own
        np.multiply(signal, slope, out=message)


@dataclass(frozen=True)
class LeakyReLU(Activation):
    """z = max(x, gamma x) for a negative slope 0 <= gamma < 1;  dz/dx = 1 where z > 0, else gamma."""

    initializer: ClassVar[str] = "he"
    negative_slope: float = 0.01

    def __post_init__(self) -> None:
        require_number("negative_slope", self.negative_slope, least=0.0, below=1.0)

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        shape = parents[0]
        return storage.constant(0.0, ()), storage.scratch(shape, np.bool_), storage.scratch(shape)

    def forward(self, z: Array, x: Array, zero: Array, active: Array, slope: Array) -> None:
        np.multiply(x, self.negative_slope, out=slope)
        np.maximum(x, slope, out=z)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array, zero: Array, active: Array, slope: Array) -> None:
        np.greater(z, zero, out=active)
        np.copyto(slope, active)
        np.multiply(slope, 1.0 - self.negative_slope, out=slope)
        np.add(slope, self.negative_slope, out=slope)
        np.multiply(signal, slope, out=message)


@dataclass(frozen=True)
class ELU(Activation):
    """z = max(x, 0) + alpha (e^min(x, 0) - 1);  dz/dx = 1 where z > 0, else z + alpha (Clevert et al. 2016)."""

    initializer: ClassVar[str] = "he"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        require_number("alpha", self.alpha, above=0.0)

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        shape = parents[0]
        return storage.constant(0.0, shape), storage.scratch(shape, np.bool_), storage.scratch(shape)

    def forward(self, z: Array, x: Array, zeros: Array, active: Array, slope: Array) -> None:
        np.minimum(x, zeros, out=slope)
        np.expm1(slope, out=slope)
        np.multiply(slope, self.alpha, out=slope)
        np.maximum(x, zeros, out=z)
        np.add(z, slope, out=z)

    def to_x(
        self, message: Array, signal: Array, z: Array, x: Array, zeros: Array, active: Array, slope: Array
    ) -> None:
        np.minimum(z, zeros, out=slope)
        np.add(slope, self.alpha, out=slope)
        if self.alpha != 1.0:
            np.greater(z, zeros, out=active)
            np.copyto(slope, 1.0, where=active)
        np.multiply(signal, slope, out=message)


@dataclass(frozen=True)
class Softplus(Activation):
    """z = ln(1 + e^(beta x)) / beta = max(x, 0) + ln(1 + e^-|beta x|) / beta;  dz/dx = 1 - e^-(beta z)."""

    initializer: ClassVar[str] = "he"
    beta: float = 1.0

    def __post_init__(self) -> None:
        require_number("beta", self.beta, above=0.0)

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        return storage.constant(0.0, parents[0]), storage.scratch(parents[0])

    def forward(self, z: Array, x: Array, zeros: Array, slope: Array) -> None:
        np.absolute(x, out=slope)
        np.multiply(slope, -self.beta, out=slope)
        np.exp(slope, out=slope)
        np.log1p(slope, out=slope)
        np.multiply(slope, 1.0 / self.beta, out=slope)
        np.maximum(x, zeros, out=z)
        np.add(z, slope, out=z)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array, zeros: Array, slope: Array) -> None:
        np.multiply(z, -self.beta, out=slope)
        np.expm1(slope, out=slope)
        np.multiply(signal, slope, out=message)
        np.negative(message, out=message)


class SiLU(Activation):
    """z = x s with s the sigmoid of x, kept from forward;  dz/dx = s + z (1 - s)."""

    initializer = "he"

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        return storage.buffer(parents[0]), storage.scratch(parents[0])

    def forward(self, z: Array, x: Array, sigmoid: Array, slope: Array) -> None:
        np.multiply(x, 0.5, out=sigmoid)
        np.tanh(sigmoid, out=sigmoid)
        np.multiply(sigmoid, 0.5, out=sigmoid)
        np.add(sigmoid, 0.5, out=sigmoid)
        np.multiply(x, sigmoid, out=z)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array, sigmoid: Array, slope: Array) -> None:
        np.subtract(1.0, sigmoid, out=slope)
        np.multiply(slope, z, out=slope)
        np.add(slope, sigmoid, out=slope)
        np.multiply(signal, slope, out=message)


class GELU(Activation):
    """z = x Phi(x), Phi the normal distribution function (1 + erf(x / sqrt 2)) / 2: the exact form, not tanh's.

    dz/dx = Phi(x) + x phi(x), phi the normal density (Hendrycks and Gimpel 2016). Both come from one exponential, and
    forward keeps the slope: with tail = Phi(-|x|), z = max(x, 0) - |x| tail.
    """

    initializer = "he"
    reads_output = False

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        shape = parents[0]
        scratch = [storage.scratch(shape) for _ in range(3)]
        return storage.buffer(shape), storage.constant(0.0, shape), storage.scratch(shape, np.bool_), *scratch

    def forward(
        self,
        z: Array,
        x: Array,
        slope: Array,
        zeros: Array,
        active: Array,
        distance: Array,
        density: Array,
        tail: Array,
    ) -> None:
        np.absolute(x, out=distance)
        normal_tail(tail, density, distance, slope)
        np.greater(x, zeros, out=active)
        np.multiply(density, 1.0 / math.sqrt(2.0 * math.pi), out=density)
        np.multiply(density, distance, out=density)
        np.multiply(tail, distance, out=distance)
        np.subtract(tail, density, out=tail)  # the slope s at -|x|; that at |x| is 1 - s = s + (1 - 2 s)
        np.multiply(tail, -2.0, out=density)
        np.add(density, 1.0, out=density)
        np.copyto(slope, active)
        np.multiply(slope, density, out=slope)
        np.add(slope, tail, out=slope)
        np.maximum(x, zeros, out=z)
        np.subtract(z, distance, out=z)

    def to_x(self, message: Array, signal: Array, z: Array, x: Array, slope: Array, *_: Array) -> None:
        np.multiply(signal, slope, out=message)


ACTIVATIONS: dict[str, type[Activation]] = {
    "identity": Identity,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "relu": ReLU,
    "leaky_relu": LeakyReLU,
    "elu": ELU,
    "softplus": Softplus,
    "silu": SiLU,
    "gelu": GELU,
}
