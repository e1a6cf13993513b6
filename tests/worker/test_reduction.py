"""Sums over shards and blocks: the order is fixed, so the bits are."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.parameters import BLOCK, ParameterLayout
from worker.reduction import clip_factor, culprit, evidence, is_finite, norm, shares, span, sum_block

SIZE = 2 * BLOCK + 77
BLOCKS = ParameterLayout(("w",), ((SIZE,),)).blocks


def slots(shards: int, dtype: str = "float32") -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [(rng.normal(size=SIZE) * 10.0 ** rng.integers(-4, 4, SIZE)).astype(dtype) for _ in range(shards)]


def cut(gradients: list[np.ndarray], block: slice) -> list[np.ndarray]:
    return [gradient[block] for gradient in gradients]


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_sum_is_taken_in_shard_order(shards: int, dtype: str) -> None:
    found, gradients = np.full(SIZE, np.nan, dtype), slots(shards, dtype)
    square_sums = [sum_block(cut(gradients, block), found[block]) for block in BLOCKS]
    wanted = gradients[0].copy()
    for gradient in gradients[1:]:
        wanted += gradient
    assert found.tobytes() == wanted.tobytes()
    assert norm(square_sums) == pytest.approx(np.linalg.norm(wanted.astype(np.float64)), rel=1e-5)


def test_another_order_of_shards_gives_other_bits() -> None:
    """What the fixed order is for: otherwise this file would test nothing."""
    forth, back = np.empty(SIZE, np.float32), np.empty(SIZE, np.float32)
    gradients = slots(3)
    for block in BLOCKS:
        sum_block(cut(gradients, block), forth[block])
        sum_block(cut(gradients[::-1], block), back[block])
    assert forth.tobytes() != back.tobytes()


def test_a_block_may_be_reduced_by_anybody_at_any_time() -> None:
    one, other = np.empty(SIZE, np.float32), np.empty(SIZE, np.float32)
    gradients = slots(3)
    in_order = [sum_block(cut(gradients, block), one[block]) for block in BLOCKS]
    backwards = [sum_block(cut(gradients, block), other[block]) for block in reversed(BLOCKS)]
    assert one.tobytes() == other.tobytes()
    assert in_order == backwards[::-1]


def test_the_slots_are_left_alone() -> None:
    gradients = slots(2)
    before = [gradient.copy() for gradient in gradients]
    sum_block(cut(gradients, BLOCKS[0]), np.empty(BLOCKS[0].stop, np.float32))
    assert all(gradient.tobytes() == old.tobytes() for gradient, old in zip(gradients, before, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shards", [1, 3])
def test_one_number_that_is_none_shows_in_the_square_sum(bad: float, shards: int) -> None:
    gradients = slots(shards)
    gradients[-1][BLOCK + 5] = bad
    found = [sum_block(cut(gradients, block), np.empty(block.stop - block.start, np.float32)) for block in BLOCKS]
    assert [math.isfinite(square_sum) for square_sum in found] == [True, False, True, True]
    assert not math.isfinite(norm(found))


def test_the_norm_adds_the_blocks_in_their_order() -> None:
    sums = [1.0, *[1e-16] * 8]
    assert norm(sums) == 1.0  # each too small to count after the first
    assert norm(sums[::-1]) > 1.0


@given(st.floats(0, 1e30), st.floats(1e-6, 1e6))
def test_clipping_bounds_the_norm_and_leaves_smaller_ones_alone(gradient_norm: float, clip_norm: float) -> None:
    factor = clip_factor(gradient_norm, clip_norm)
    assert clip_factor(gradient_norm, None) == 1.0
    if gradient_norm <= clip_norm:
        assert factor == 1.0
    else:
        assert gradient_norm * factor == pytest.approx(clip_norm)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("size", [1, 3, 77, BLOCK])
def test_one_value_that_is_not_finite_is_found_anywhere(dtype: str, value: float, size: int) -> None:
    for place in {0, size // 2, size - 1}:
        values = np.ones(size, dtype)
        assert is_finite(values)
        values[place] = value
        assert not is_finite(values)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_infinities_of_both_signs_do_not_hide_each_other(dtype: str) -> None:
    assert not is_finite(np.array([np.inf, -np.inf, 1.0], dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_largest_finite_values_are_finite(dtype: str) -> None:
    largest = np.finfo(dtype).max
    assert is_finite(np.full(BLOCK, largest, dtype))
    assert is_finite(np.array([largest, -largest, np.finfo(dtype).smallest_subnormal], dtype))


@pytest.mark.parametrize("cuts", [[], [9], [100, 2000]], ids=str)
def test_the_culprit_is_the_first_shard_whose_gradient_is_not_finite(cuts: list[int]) -> None:
    """However the vector is cut: by the evidence of all parts, of which those that are sound may have none."""
    gradients = slots(4)

    def blamed() -> int | None:
        parts = [evidence(part) for part in zip(*(np.split(gradient, cuts) for gradient in gradients), strict=True)]
        return culprit([part for part in parts if not all(math.isfinite(squares) for _, squares in part)])

    assert blamed() is None
    gradients[1][5] = 1e30  # finite, and its square is not
    assert blamed() == 1
    gradients[3][-1] = np.nan
    assert blamed() == 3
    gradients[2][0] = np.inf
    assert blamed() == 2


@given(st.integers(1, 40), st.data())
def test_every_block_is_one_aggregators_and_neighbours_stay_together(count: int, data: st.DataObject) -> None:
    blocks = [slice(10 * k, 10 * k + 10) for k in range(count)]
    of = data.draw(st.integers(1, count))
    dealt = shares(blocks, of)
    assert [block for share in dealt for block in share] == blocks
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert [span(share).start for share in dealt[1:]] == [span(share).stop for share in dealt[:-1]]
