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


INITIALIZERS: dict[str, Initializer] = {"glorot": glorot, "he": he}
