"""Dropout: in training, units are silent at random, so that none relies on another (Srivastava et al. 2014).

The mask is a pure function of (seed, step, shard, layer): whoever computes a shard's step anew, after a fault or on
another machine, drops the same units.
"""

import sys

import numpy as np

from .draw import Draw
from .operations import LocalDerivative, Operation
from .storage import ROWS, Array, Shape, Storage

# The first word of the seed sequence that masks are drawn from: "drop", told apart from all other draws.
_DROPOUT = 0x64726F70
# The highest rate: of numbers in steps of 2^-20 the share below 1 - rate is still that to 0.05 %.
MOST_RATE = 0.999


class Dropout(Operation):
    """z = x m, element by element, for a mask m that is 0 where a unit is dropped, else 1 / (1 - rate).  dz/dx = m.

    So the expectation of z is x, and predictions take x as it is: a mask of ones. m receives no message.
    """

    elementwise, reads_parents = True, False  # of its parents, the mask is never overwritten: it is the caller's

    def shape(self, *parents: Shape) -> Shape:
        if len(parents) != 2 or parents[0] != parents[1]:
            raise ValueError("expected x and a mask of its shape")
        return parents[0]

    def forward(self, z: Array, x: Array, mask: Array) -> None:
        np.multiply(x, mask, out=z)

    def derivatives(self, *parents: Shape) -> tuple[LocalDerivative | None, ...]:
        return self.to_x, None

    def to_x(self, message: Array, signal: Array, z: Array, x: Array, mask: Array) -> None:
        np.multiply(signal, mask, out=message)


class Mask:
    """The mask of one layer, (rows, units) of the plan's dtype, drawn anew into the same memory."""

    neutral = 1.0  # what predictions multiply by

    def __init__(self, storage: Storage, units: int, rate: float, layer: int) -> None:
        self.array = storage.buffer((ROWS, units))
        self._rate, self._layer, size = rate, layer, self.array.size
        self._doubles = storage.buffer((-(-size // 2),), np.float64)
        self._kept = storage.buffer((len(self._doubles) * 2,), np.bool_)
        # Both halves of a double in [1, 2), as whole numbers, below which `1 - rate` of all such halves are.
        low, high = round((1.0 - rate) * (2**32 - 1)), 0x3FF00000 + round((1.0 - rate) * 2**20)
        self._limits = storage.buffer(self._kept.shape, np.uint32)
        self._limits.reshape(-1, 2)[...] = (low, high) if sys.byteorder == "little" else (high, low)

    def draw(self, draw: Draw) -> None:
        """The mask of seed, step and shard. A double's 52 random bits decide on two units: drawing is what costs."""
        entropy = np.random.SeedSequence((draw.seed, _DROPOUT, draw.step, draw.shard, self._layer))
        np.random.Generator(np.random.SFC64(entropy)).random(out=self._doubles)
        np.add(self._doubles, 1.0, out=self._doubles)
        np.less(self._doubles.view(np.uint32), self._limits, out=self._kept)
        np.copyto(self.array, self._kept[: self.array.size].reshape(self.array.shape))
        np.multiply(self.array, 1.0 / (1.0 - self._rate), out=self.array)
