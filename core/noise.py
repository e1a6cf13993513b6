"""Noise on the features in training: a network that sees no row twice the same does not learn rows by heart.

For small noise it amounts to a penalty on the output's derivatives (Bishop 1995). It falls with the learning rate, so
that the last steps are taken on what predictions will see (as in Tang 2013). Like dropout's masks it is a pure function
of the draw.
"""

import numpy as np

from .draw import Draw
from .storage import ROWS, Storage

# The first word of the seed sequence that noise is drawn from: "nois", told apart from all other draws.
_NOISE = 0x6E6F6973


class Noise:
    """Gaussian, (rows, inputs) of the plan's dtype, drawn anew into the same memory."""

    neutral = 0.0  # what predictions add

    def __init__(self, storage: Storage, inputs: int, deviation: float) -> None:
        """`deviation`: standard, at the full learning rate, in the features' units as the network takes them."""
        self.array = storage.buffer((ROWS, inputs))
        self._deviation = deviation

    def draw(self, draw: Draw) -> None:
        """The noise of the step on the shard."""
        entropy = np.random.SeedSequence((draw.seed, _NOISE, draw.step, draw.shard))
        np.random.Generator(np.random.SFC64(entropy)).standard_normal(dtype=self.array.dtype, out=self.array)
        np.multiply(self.array, self._deviation * draw.level, out=self.array)
