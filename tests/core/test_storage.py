import numpy as np
import pytest

from core.storage import ROWS, Storage


def test_plans_share_buffers_and_nodes_share_scratch():
    storage = Storage(np.float32)
    storage.start_plan(8)
    storage.start_node()
    first, scratch = storage.buffer((ROWS, 3)), storage.scratch((ROWS, 3))
    storage.start_node()
    second, other_scratch = storage.buffer((2,), np.float64), storage.scratch((2,), np.bool_)
    assert first.shape == (8, 3)
    assert first.dtype == np.float32
    assert second.dtype == np.float64
    assert not np.shares_memory(first, second)
    assert np.shares_memory(scratch, other_scratch)
    storage.start_plan(5)
    assert np.shares_memory(storage.buffer((ROWS, 3)), first)


def test_a_larger_plan_leaves_the_smaller_ones_memory_alone():
    storage = Storage(np.float32)
    storage.start_plan(2)
    small = storage.buffer((ROWS,))
    storage.start_plan(9)
    assert not np.shares_memory(storage.buffer((ROWS,)), small)


def test_constants_cannot_be_written():
    storage = Storage(np.float64)
    storage.start_plan(4)
    ones = storage.constant(1.0, (ROWS, 2))
    np.testing.assert_array_equal(ones, np.ones((4, 2)))
    with pytest.raises(ValueError, match="read-only"):
        ones[0] = 2.0
    np.testing.assert_array_equal(storage.constant(1.0, (100,)), np.ones(100))


def test_arrays_start_at_a_cache_line():
    storage = Storage(np.float32)
    storage.start_plan(3)
    for array in (storage.buffer((ROWS, 7)), storage.buffer((1,)), storage.scratch((5,)), storage.constant(0.0, (3,))):
        assert array.ctypes.data % 64 == 0
