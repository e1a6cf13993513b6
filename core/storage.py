"""The memory of plans: allocated once, handed out again to every plan of the same graph.

Plans for different numbers of rows never run at the same time, so the k-th buffer of each is the same memory. So is the
k-th scratch of each node within a plan: scratch holds nothing from one call to the next.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

# A shape's first dimension where it runs over the rows of the minibatch.
ROWS = -1

Array = NDArray[Any]
Shape = tuple[int, ...]

_ALIGNMENT = 64  # bytes: a cache line, and the widest SIMD register


class Storage:
    """Hands out arrays of a plan's dtype, in which ROWS stands for its number of rows.

    `small_product`: so many multiplications a matrix product may have for BLAS to do it without packing its operands,
    which is faster where rows are few; 0 where BLAS knows no such thing.
    """

    def __init__(self, dtype: DTypeLike, small_product: int = 0) -> None:
        self.dtype, self.small_product = np.dtype(dtype), small_product
        self.rows = 0
        self._buffers: list[Array] = []
        self._scratch: list[Array] = []
        self._messages: list[Array] = []
        self._constants: dict[float, Array] = {}
        self._buffers_taken = self._scratch_taken = 0

    def start_plan(self, rows: int) -> None:
        """Hand out everything anew, for plans of `rows` rows."""
        self.rows, self._buffers_taken = rows, 0

    def start_node(self) -> None:
        """Hand out the scratch anew: the node before has what it needs."""
        self._scratch_taken = 0

    def shape(self, shape: Shape) -> Shape:
        """`shape` with the number of rows in place of ROWS."""
        return tuple(self.rows if size == ROWS else size for size in shape)

    def buffer(self, shape: Shape, dtype: DTypeLike | None = None) -> Array:
        """An array that is one node's alone, from its forward call to its last backward call."""
        self._buffers_taken += 1
        return self._take(self._buffers, self._buffers_taken - 1, shape, dtype)

    def scratch(self, shape: Shape, dtype: DTypeLike | None = None) -> Array:
        """An array whose contents are lost after each call of the node."""
        self._scratch_taken += 1
        return self._take(self._scratch, self._scratch_taken - 1, shape, dtype)

    def message(self, shape: Shape) -> Array:
        """Where a second or later message lies until it is added to the first."""
        return self._take(self._messages, 0, shape, None)

    def constant(self, value: float, shape: Shape) -> Array:
        """A read-only array filled with `value`. NumPy's maximum(x, zeros) is four times as fast as maximum(x, 0)."""
        shape = self.shape(shape)
        size = math.prod(shape)
        if value not in self._constants or len(self._constants[value]) < size:
            self._constants[value] = _aligned(size * self.dtype.itemsize).view(self.dtype)
            self._constants[value].fill(value)
            self._constants[value].flags.writeable = False
        return self._constants[value][:size].reshape(shape)

    def _take(self, buffers: list[Array], index: int, shape: Shape, dtype: DTypeLike | None) -> Array:
        kind, shape = self.dtype if dtype is None else np.dtype(dtype), self.shape(shape)
        size = math.prod(shape) * kind.itemsize
        if index == len(buffers):
            buffers.append(_aligned(size))
        elif len(buffers[index]) < size:
            buffers[index] = _aligned(size)  # plans made before keep the smaller one
        return buffers[index][:size].view(kind).reshape(shape)


def _aligned(size: int) -> Array:
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size]
