"""A long job holds no more at its end than at its beginning. `python -m benchmarks.endurance` does a million steps."""

from pathlib import Path

import pytest

from benchmarks.endurance import measured, small_plan
from worker import futex

STEPS = 8_000
SLACK = 300_000  # bytes: of allocators and caches; 38 a step, had they to do with the steps


@pytest.mark.skipif(not futex.SUPPORTED, reason="words in shared memory need x86-64 Linux (worker.futex)")
def test_memory_and_file_descriptors_are_flat(tmp_path: Path) -> None:
    for before, after in measured(small_plan(tmp_path), workers=2, warm_up=2000, steps=STEPS):
        assert after.descriptors == before.descriptors
        assert after.bytes < before.bytes + SLACK
