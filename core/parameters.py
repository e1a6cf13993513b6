"""All parameters of a network as one flat vector with named, shaped views.

Optimizers, gradients and exchanges see the flat vector and never a layer; the network sees the views and never copies.
"""

import hashlib
import math
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .errors import GraphError

# Elements a block, at most. What is reduced over the whole vector is reduced block by block and combined in order: the
# borders depend on the layout alone, so that the bits do not depend on how many workers share the blocks. Smaller ones
# would cost more in calls than they save in cache misses: a block's three vectors in plain SGD are 768 KiB in float32,
# and fit a second-level cache.
BLOCK = 1 << 16
_LINE = 16  # elements that no two blocks share the cache line of, in float32


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
        """Slices of at most BLOCK elements that cover [0, size) in order: one, or an even number of about one size.

        Two workers, of whom most jobs have as many, then do the same.
        """
        count = max(-(-self.size // BLOCK), 1)
        count += count % 2 if count > 1 else 0
        width = max(-(-self.size // (count * _LINE)), 1) * _LINE
        return tuple(slice(start, min(start + width, self.size)) for start in range(0, self.size, width))

    def views(self, flat: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Each parameter as a shaped view of `flat` (P,), writable where it is; GraphError if it does not fit."""
        if flat.shape != (self.size,) or not flat.flags.c_contiguous:
            raise GraphError(f"a contiguous vector of {self.size} is wanted, not one of {flat.shape}", self.names)
        return {
            name: flat[offset : offset + size].reshape(shape)
            for name, shape, size, offset in zip(self.names, self.shapes, self.sizes, self.offsets, strict=True)
        }


class RecentViews:
    """The views of the vectors used last, so that vectors that take turns are not cut up anew at each."""

    def __init__(self, layout: ParameterLayout, dtype: DTypeLike, kept: int = 2) -> None:
        self._layout, self._dtype = layout, np.dtype(dtype)
        self._recent: deque[tuple[NDArray[Any], dict[str, NDArray[Any]]]] = deque(maxlen=kept)

    def __call__(self, flat: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """`layout.views(flat)`: the same mapping as before if this very array is among the recent ones."""
        for known, views in self._recent:
            if known is flat:
                return views
        if flat.dtype != self._dtype:
            raise GraphError(f"a vector of {self._dtype} is wanted, not one of {flat.dtype}", self._layout.names)
        views = self._layout.views(flat)
        self._recent.append((flat, views))
        return views


def weights_sha256(flat: NDArray[Any]) -> str:
    """SHA-256, as 64 hex digits, of the vector's bytes in its own dtype, little-endian."""
    return hashlib.sha256(np.ascontiguousarray(flat, flat.dtype.newbyteorder("<")).data).hexdigest()
