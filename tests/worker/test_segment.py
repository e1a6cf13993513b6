"""The segment's memory: there at once, or refused in words."""

import os
from pathlib import Path

import pytest

from worker.machine_memory import available_bytes, total_bytes
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
    with pytest.raises(MemoryError, match=r"segment takes [\d,]+ bytes of memory; [\d,]+ are available"):
        Segment.create(layout(total_bytes() // 8))
    assert os.listdir("/proc/self/fd") == before


def test_a_containers_memory_is_its_limit(tmp_path: Path) -> None:
    whole = total_bytes(tmp_path)
    assert whole == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_bytes(tmp_path) <= whole
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert total_bytes(tmp_path) == whole
    (tmp_path / "memory.max").write_text("1500\n")
    assert (total_bytes(tmp_path), available_bytes(tmp_path)) == (1500, 500)
    (tmp_path / "memory.stat").write_text("anon 600\nfile 400\ninactive_file 300\nactive_file 100\n")
    assert available_bytes(tmp_path) == 800  # what was read of files and is not in use gives way
    (tmp_path / "memory.current").write_text("200\n")  # read at another moment than the statistics
    assert available_bytes(tmp_path) == 1500
