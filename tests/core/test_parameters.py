import hashlib

import numpy as np
import pytest

from core.errors import GraphError
from core.parameters import BLOCK, ParameterLayout, RecentViews, weights_sha256

LAYOUT = ParameterLayout(("W", "b", "V"), ((3, 2), (2,), (2, 4)))


def test_views_are_windows_on_the_flat_vector():
    flat = np.arange(16.0)
    views = LAYOUT.views(flat)
    assert LAYOUT.size == 16
    assert LAYOUT.offsets == (0, 6, 8)
    np.testing.assert_array_equal(views["W"], [[0, 1], [2, 3], [4, 5]])
    views["b"][:] = -1
    np.testing.assert_array_equal(flat[6:8], [-1, -1])
    np.testing.assert_array_equal(views["V"].ravel(), flat[8:])


def test_views_of_read_only_vectors_are_read_only():
    flat = np.zeros(16)
    flat.flags.writeable = False
    assert not any(view.flags.writeable for view in LAYOUT.views(flat).values())


@pytest.mark.parametrize("flat", [np.zeros(15), np.zeros((4, 4)), np.zeros(32)[::2]])
def test_a_vector_that_does_not_fit_is_refused(flat):
    with pytest.raises(GraphError, match="vector of 16"):
        LAYOUT.views(flat)


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 1, 235_146, 3 * BLOCK + 7])
def test_blocks_cover_the_vector_in_order(size):
    layout = ParameterLayout(("w",), ((size,),))
    assert sum(block.stop - block.start for block in layout.blocks) == size
    assert all(a.stop == b.start for a, b in zip(layout.blocks, layout.blocks[1:], strict=False))
    assert layout.blocks[-1].stop == size
    sizes = [block.stop - block.start for block in layout.blocks]
    assert max(sizes) <= BLOCK
    if size > BLOCK:  # two workers do the same
        assert len(sizes) % 2 == 0
        assert sum(sizes[::2]) - sum(sizes[1::2]) < 16 * len(sizes)


def test_recent_views_know_vectors_that_take_turns():
    recent = RecentViews(LAYOUT, np.float64)
    first, second, third = np.zeros(16), np.zeros(16), np.zeros(16)
    views = recent(first)
    assert recent(second) is not views
    assert recent(first) is views
    recent(third)
    assert recent(first) is not views
    with pytest.raises(GraphError, match="float64"):
        recent(np.zeros(16, np.float32))


def test_sha256_is_that_of_the_little_endian_bytes():
    flat = np.array([1.0, -2.5], np.float32)
    expected = hashlib.sha256(bytes.fromhex("0000803f000020c0")).hexdigest()
    assert weights_sha256(flat) == expected
    assert weights_sha256(flat.astype(">f4")) == expected
    assert weights_sha256(flat.astype(np.float64)) != expected
