"""A long job of a small network in shared memory: memory and file descriptors of its processes, before and after.

python -m benchmarks.endurance --steps 1000000
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.prepared_arrays import write_prepared
from benchmarks.processes import Processes
from core.network import NetworkSpec
from core.optimizers import OptimizerSpec
from core.schedules import ScheduleSpec
from worker.crew import Crew
from worker.exchange import Exchange
from worker.plan import StepPlan
from worker.sampling import Sampling
from worker.shared_memory import SharedMemoryExchange

CHUNK, CHUNKS_AN_EPOCH = 500, 4
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Footprint:
    """What a process holds: bytes of memory that are its own (not the segment's), and open file descriptors."""

    bytes: int
    descriptors: int


def footprint(pid: int) -> Footprint:
    """The process's, now."""
    resident, shared = map(int, Path(f"/proc/{pid}/statm").read_text().split()[1:3])
    return Footprint((resident - shared) * _PAGE, len(os.listdir(f"/proc/{pid}/fd")))


def small_plan(folder: Path) -> StepPlan:
    """Steps of 32 rows, 10 features and 3 classes, over 2 shards."""
    rng = np.random.default_rng(0)
    data = write_prepared(folder / "prepared", rng.random((1200, 10)), np.arange(1200) % 3, test=200)
    network, sampling = NetworkSpec(10, 3, (16,)), Sampling(1000, 32, 2, seed=0)
    return StepPlan(str(data.folder), network, sampling, OptimizerSpec("adam", 1e-3), ScheduleSpec(), 10**7, 1)


@contextmanager
def job(plan: StepPlan, workers: int) -> Iterator[tuple[Exchange, list[int]]]:
    """An exchange over processes of this machine, and their pids, the trainer's own first."""
    transport = Processes()
    try:
        crew = Crew(plan, [transport.recruit() for _ in range(workers)], transport, lambda event: None)
        crew.admit(wait=True)
        exchange = SharedMemoryExchange(plan, 0, crew, transport)
        yield exchange, [os.getpid(), *(crew.attached[worker.name].pid for worker in crew.members)]
        exchange.close()
    finally:
        transport.close()


def run(exchange: Exchange, steps: int) -> None:
    """So many steps as a trainer takes them: in chunks, with evaluations and looks inside now and then."""
    for chunk in range(steps // CHUNK):
        exchange.run_steps(CHUNK)
        if chunk % CHUNKS_AN_EPOCH == 0:
            exchange.evaluate("test")
            exchange.keep_best()
            exchange.diagnose()


def measured(plan: StepPlan, workers: int, warm_up: int, steps: int) -> list[tuple[Footprint, Footprint]]:
    """Of each process, the trainer's first: before and after so many steps, which follow `warm_up` others."""
    with job(plan, workers) as (exchange, pids):
        run(exchange, warm_up)
        before = [footprint(pid) for pid in pids]
        run(exchange, steps)
        return list(zip(before, map(footprint, pids), strict=True))


def main() -> None:
    """Prints what each process held before and after."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=1_000_000)
    arguments.add_argument("--workers", type=int, default=2)
    asked, began = arguments.parse_args(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(small_plan(Path(folder)), asked.workers, 10_000, asked.steps)
    sys.stdout.write(f"{asked.steps} steps and the first 10,000 in {time.monotonic() - began:.0f} s\n")
    for number, (before, after) in enumerate(found):
        name = f"worker {number - 1}" if number else "trainer"
        sys.stdout.write(
            f"{name}: {before} -> {after}, {(after.bytes - before.bytes) / asked.steps:.3f} bytes a step\n"
        )


if __name__ == "__main__":
    main()
