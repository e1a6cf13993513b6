"""The segment's memory: there at once, or refused in words."""

import os

import pytest

from worker.segment import Segment, SegmentLayout


def layout(parameters: int) -> SegmentLayout:
    return SegmentLayout(parameters, "float32", state_vectors=2, shards=8, blocks=1, seats=2, sums=3)


def test_another_mapping_sees_what_is_written() -> None:
    ours = Segment.create(layout(1000))
    theirs = Segment.open(ours.layout, ours.path)
    ours.slots[3, 7] = 2.5
    assert theirs.slots[3, 7] == 2.5
    assert theirs.committed == 0
    os.close(ours.descriptor)


def test_a_segment_that_does_not_fit_is_refused_and_leaves_nothing_open() -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(MemoryError, match=r"segment of [\d,]+ bytes does not fit in memory"):
        Segment.create(layout(2**57))
    assert os.listdir("/proc/self/fd") == before
