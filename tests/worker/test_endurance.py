"""A long job holds no more at its end than at its beginning. `python -m benchmarks.endurance` does a million steps."""

from pathlib import Path

import pytest

from benchmarks.endurance import measured, small_plan
from worker import futex

STEPS = 8_000
SLACK = 300_000  # bytes: of allocators and caches; 38 a step, had they to do with the steps
TIMES = 3  # an allocator's new arena is one of them by chance; what leaks does so each time


@pytest.mark.skipif(not futex.SUPPORTED, reason="words in shared memory need x86-64 Linux (worker.futex)")
def test_memory_and_file_descriptors_are_flat(tmp_path: Path) -> None:
    plan, grown = small_plan(tmp_path), list[int]()
    while len(grown) < TIMES:
        found = measured(plan, workers=2, warm_up=2000, steps=STEPS)
        assert all(after.descriptors == before.descriptors for before, after in found)
        grown.append(max(after.bytes - before.bytes for before, after in found))
        if grown[-1] < SLACK:
            return
    pytest.fail(f"grew by {grown} bytes")
