"""Sums over shards and over the parameter vector, in an order that no number of workers changes.

Shards are added in shard order, element by element; what is reduced over the whole vector is reduced within fixed
blocks (core.parameters.BLOCK), and the blocks' results are combined in order.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.errors import Diverged

Array = NDArray[Any]


@np.errstate(all="ignore")
def sum_block(parts: Sequence[Array], out: Array) -> float:
    """Write the sum of the shards' `parts` (n,), a block of each gradient, into `out`; returns its square sum.

    That it is to be divided by the rows' weight is left to the update (core.optimizers), which has a factor anyway. The
    square sum is not finite exactly when a number in the block is not, or is beyond the root of the dtype's range:
    finiteness and norm cost one pass.
    """
    if len(parts) == 1:
        np.copyto(out, parts[0])
    else:
        np.add(parts[0], parts[1], out)
        for part in parts[2:]:
            np.add(out, part, out)
    return float(np.dot(out, out))


@np.errstate(all="ignore")
def square_sum(values: Array) -> float:
    """Of any slice of a vector: the same bits whoever takes it, other ones if it is cut otherwise."""
    return float(np.dot(values, values))


@np.errstate(all="ignore")
def is_finite(values: Array) -> bool:
    """Whether all of `values` (n,) are finite, however large they are.

    They are where their square sum is: one product, over nothing but them. Where it is not, they may be too large for
    it alone: their product with zeros is zero then, and not a number otherwise.
    """
    return math.isfinite(np.dot(values, values)) or math.isfinite(np.dot(values, _zeros(values.size, values.dtype)))


@lru_cache(maxsize=4)
def _zeros(size: int, dtype: np.dtype[Any]) -> Array:
    zeros = np.zeros(size, dtype)
    zeros.flags.writeable = False
    return zeros


def evidence(gradients: Iterable[Array]) -> tuple[tuple[bool, float], ...]:
    """Of each shard's gradient, or a part of it: whether all of it is finite, and its square sum."""
    return tuple((is_finite(gradient), square_sum(gradient)) for gradient in gradients)


def culprit(parts: Sequence[Sequence[tuple[bool, float]]]) -> int | None:
    """The shard that is to blame for a summed gradient whose norm is not finite, by the evidence of each part of it.

    The first whose gradient holds what is not finite, or else whose square sum is beyond the dtype's range; None where
    the gradients are too large only together.
    """
    shards = list(zip(*parts, strict=True))
    for shard, found in enumerate(shards):
        if not all(is_sound for is_sound, _ in found):
            return shard
    for shard, found in enumerate(shards):
        if not math.isfinite(sum(squares for _, squares in found)):
            return shard
    return None


def shares(blocks: Sequence[slice], count: int) -> list[list[slice]]:
    """The fixed blocks dealt out to `count` aggregators, at most one a block: neighbours to the same one."""
    return [list(blocks[len(blocks) * k // count : len(blocks) * (k + 1) // count]) for k in range(count)]


def span(blocks: Sequence[slice]) -> slice:
    """What neighbouring blocks cover."""
    return slice(blocks[0].start, blocks[-1].stop)


def total_loss(step: int, losses: Sequence[float]) -> float:
    """The sum of the shards' `losses`, in shard order, one by one: `sum` rounds otherwise since Python 3.12. Raises
    Diverged where it is not finite, with the first shard whose loss is not."""
    total = 0.0
    for loss in losses:
        total += loss
    if not math.isfinite(total):
        shard = next((shard for shard, loss in enumerate(losses) if not math.isfinite(loss)), None)
        raise Diverged(step, shard, "loss")
    return total


def norm(square_sums: Iterable[float]) -> float:
    """The norm of a vector from the square sums of its blocks, combined in their order."""
    total = 0.0
    for square_sum in square_sums:
        total += square_sum
    return math.sqrt(total)


def clip_factor(gradient_norm: float, clip_norm: float | None) -> float:
    """What the mean gradient is multiplied by so that its norm is at most `clip_norm` (None: any)."""
    if clip_norm is None or gradient_norm <= clip_norm:
        return 1.0
    return clip_norm / gradient_norm
