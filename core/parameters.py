"""All parameters of a network as one flat vector with named, shaped views.

Optimizers, gradients and exchanges see the flat vector and never a layer; the network sees the views and never copies.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Elements a block. What is reduced over the whole vector is reduced block by block and combined in order: the borders
# depend on the layout alone, so that the bits do not depend on how many workers share the blocks. Seven vectors of one
# block (AdamW's) stay within a second-level cache of 1 MiB in float32.
BLOCK = 1 << 15


@dataclass(frozen=True)
class ParameterLayout:
    """Where each named parameter lies in the flat vector: one after the other, row by row, without gaps."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each parameter."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def size(self) -> int:
        """P, the length of the flat vector."""
        return sum(self.sizes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """The first element of each parameter in the flat vector."""
        return tuple(sum(self.sizes[:k]) for k in range(len(self.sizes)))

    @cached_property
    def blocks(self) -> tuple[slice, ...]:
        """Slices of at most BLOCK elements that cover [0, size) in order."""
        return tuple(slice(start, min(start + BLOCK, self.size)) for start in range(0, self.size, BLOCK))

    def views(self, flat: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Each parameter as a shaped view of `flat` (P,), contiguous; writable where `flat` is."""
        return {
            name: flat[offset : offset + size].reshape(shape)
            for name, shape, size, offset in zip(self.names, self.shapes, self.sizes, self.offsets, strict=True)
        }


def weights_sha256(flat: NDArray[Any]) -> str:
    """SHA-256, as 64 hex digits, of the vector's bytes in its own dtype, little-endian."""
    return hashlib.sha256(np.ascontiguousarray(flat, flat.dtype.newbyteorder("<")).data).hexdigest()
