"""Initial weights: random, so that units differ; scaled, so that signals neither vanish nor explode on their way."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Initializer = Callable[[np.random.Generator, int, int], NDArray[Any]]


def glorot(generator: np.random.Generator, inputs: int, units: int) -> NDArray[np.float64]:
    """Uniform within +-sqrt(6 / (inputs + units)): variance 2 / (inputs + units) (Glorot and Bengio 2010, eq. 16)."""
    bound = math.sqrt(6.0 / (inputs + units))
    return generator.uniform(-bound, bound, (inputs, units))


def he(generator: np.random.Generator, inputs: int, units: int) -> NDArray[np.float64]:
    """Normal with variance 2 / inputs: for rectifiers, which pass on half of it (He et al. 2015, eq. 10)."""
    return generator.normal(0.0, math.sqrt(2.0 / inputs), (inputs, units))


def lecun(generator: np.random.Generator, inputs: int, units: int) -> NDArray[np.float64]:
    """Normal with variance 1 / inputs: net inputs as spread as the inputs (LeCun et al. 1998, "Efficient BackProp")."""
    return generator.normal(0.0, math.sqrt(1.0 / inputs), (inputs, units))


def orthogonal(generator: np.random.Generator, inputs: int, units: int) -> NDArray[np.float64]:
    """Orthonormal columns, or rows where there are fewer: signals keep their length (Saxe et al. 2014).

    The orthogonal factor of a normal matrix, by signs made uniform over all such matrices. Its bits are LAPACK's.
    """
    q, r = np.linalg.qr(generator.normal(size=(max(inputs, units), min(inputs, units))))
    q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return q if inputs >= units else np.ascontiguousarray(q.T)


INITIALIZERS: dict[str, Initializer] = {"glorot": glorot, "he": he, "lecun": lecun, "orthogonal": orthogonal}
