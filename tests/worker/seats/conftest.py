"""The shared-memory exchange over real processes, beside the oracle: one process."""

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from multiprocessing.synchronize import Semaphore
from typing import Any

import numpy as np
import pytest

from benchmarks.processes import Processes
from core.parameters import weights_sha256
from worker.crew import Crew
from worker.exchange import InProcessExchange
from worker.gradient_worker import GradientWorker
from worker.plan import StepPlan, StepReport, TrainerEvent
from worker.shared_memory import SharedMemoryExchange

SEED, STEPS = 5, 40
PATIENCE_S = 30.0  # for another process of the test


class Bench:
    """An exchange over real processes."""

    def __init__(self, plan: StepPlan, workers: int, claiming: bool = True, kinds: Sequence[type] = ()) -> None:
        """`kinds`: of the first workers, where they are not plain ones."""
        self.transport, self.events = Processes(), list[TrainerEvent]()
        recruits = [self.transport.recruit(kind) for kind, _ in zip_longest(kinds, range(workers))]
        crew = Crew(plan, recruits, self.transport, self.events.append)
        crew.admit(wait=True)
        self.crew = crew
        self.exchange = SharedMemoryExchange(plan, SEED, crew, self.transport, claiming=claiming)

    def pid(self, number: int) -> int:
        """The process of the member in seat `number`."""
        return self.crew.attached[self.crew.members[number].name].pid

    def close(self) -> None:
        self.exchange.close()
        self.transport.close()


@pytest.fixture
def open_bench() -> Iterator[type[Bench]]:
    benches = []

    class Opened(Bench):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            benches.append(self)

    yield Opened
    for bench in benches:
        bench.close()


def oracle(plan: StepPlan, steps: int = STEPS) -> tuple[str, list[StepReport], np.ndarray]:
    exchange = InProcessExchange(plan, SEED)
    reports = exchange.run_steps(steps)
    found = weights_sha256(exchange.parameters()), reports, exchange.evaluate("validation")
    exchange.close()
    return found


def shards(plan: StepPlan, count: int) -> StepPlan:
    return replace(plan, sampling=replace(plan.sampling, shards=count))


class Meeting:
    """Where the workers of one test meet: made before they are forked."""

    begun: Semaphore
    done: Semaphore


@pytest.fixture
def meeting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("begun", "done"):
        monkeypatch.setattr(Meeting, name, multiprocessing.get_context("fork").Semaphore(0), raising=False)


def await_the_other(worker: GradientWorker) -> None:
    """Once in a worker's life."""
    if not worker.__dict__.setdefault("met", False):
        worker.__dict__["met"] = Meeting.begun.acquire(timeout=PATIENCE_S)
