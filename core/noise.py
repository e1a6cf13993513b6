"""Noise on the features in training: a network that sees no row twice the same does not learn rows by heart.

For small noise it amounts to a penalty on the output's derivatives (Bishop 1995). Like dropout's masks it is a pure
function of (seed, step, shard).
"""

import numpy as np

from .dropout import Draw
from .storage import ROWS, Storage

# The first word of the seed sequence that noise is drawn from: "nois", told apart from all other draws.
_NOISE = 0x6E6F6973


class Noise:
    """Gaussian, (rows, inputs) of the plan's dtype, drawn anew into the same memory."""

    neutral = 0.0  # what predictions add

    def __init__(self, storage: Storage, inputs: int, deviation: float) -> None:
        """`deviation`: its standard deviation, in the features' units as the network takes them."""
        self.array = storage.buffer((ROWS, inputs))
        self._deviation = deviation

    def draw(self, draw: Draw) -> None:
        """The noise of (seed, step, shard)."""
        seed, step, shard = draw
        entropy = np.random.SeedSequence((seed, _NOISE, step, shard))
        np.random.Generator(np.random.SFC64(entropy)).standard_normal(dtype=self.array.dtype, out=self.array)
        np.multiply(self.array, self._deviation, out=self.array)
