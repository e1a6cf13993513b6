"""Scaled midway, a job ends in the same bits, over every exchange."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.processes import Processes
from core.optimizers import OptimizerSpec
from core.parameters import weights_sha256
from worker import futex
from worker.crew import Crew
from worker.exchange import Exchange, InProcessExchange
from worker.plan import StepPlan, TrainerEvent
from worker.shared_memory import SharedMemoryExchange

SEED = 5
PLAN = ((10, 1), (20, 6), (30, None))  # after so many steps, so many workers
AT_MOST_STEPS = 5000
needs_words = pytest.mark.skipif(not futex.SUPPORTED, reason="words in shared memory need x86-64 Linux (worker.futex)")
each_job = pytest.mark.parametrize(
    ("optimizer", "network"),
    [
        (OptimizerSpec("sgd", 0.05), {}),
        (OptimizerSpec("sgd", 0.02, momentum=0.9), {}),
        (OptimizerSpec("adam", 1e-3, clip_norm=1.0), {"dropout": 0.3}),
        (OptimizerSpec("adam", 1e-3), {"layer_norm": True}),
    ],
    ids=["sgd", "momentum", "dropout", "layer norm"],
)


def job(plan: StepPlan, optimizer: OptimizerSpec, network: dict[str, Any]) -> StepPlan:
    sampling = replace(plan.sampling, shards=8)
    return replace(plan, sampling=sampling, optimizer=optimizer, network=replace(plan.network, **network))


def scaled(exchange: Exchange) -> tuple[str, list[int], list[int]]:
    """The weights' hash after 4 -> 1 -> 6 workers, the steps reported, and how many workers there were."""
    steps, workers = [], []
    for until, then in PLAN:
        while len(steps) < until:
            steps += [report.step for report in exchange.run_steps(5)]
        workers.append(exchange.workers)
        if then is not None:
            exchange.scale(then)
    return weights_sha256(exchange.parameters()), steps, workers


def wanted(plan: StepPlan, steps: int) -> str:
    exchange = InProcessExchange(plan, SEED)
    exchange.run_steps(steps)
    found = weights_sha256(exchange.parameters())
    exchange.close()
    return found


class Shared:
    """A shared-memory exchange over processes of this machine."""

    def __init__(self, plan: StepPlan, workers: int) -> None:
        self.transport, self.events = Processes(), list[TrainerEvent]()
        recruits = [self.transport.recruit() for _ in range(workers)]
        self.crew = Crew(plan, recruits, self.transport, self.events.append)
        self.crew.admit(wait=True)
        self.exchange = SharedMemoryExchange(plan, SEED, self.crew, self.transport)

    def until(self, condition: Callable[[], bool]) -> int:
        """Runs steps until it is met; how many."""
        steps = 0
        while not condition():
            steps += len(self.exchange.run_steps(1))
            assert steps < AT_MOST_STEPS
        return steps

    def close(self) -> None:
        self.exchange.close()
        self.transport.close()


@pytest.fixture
def shared() -> Iterator[Callable[[StepPlan, int], Shared]]:
    with ExitStack() as stack:

        def opened(plan: StepPlan, workers: int) -> Shared:
            found = Shared(plan, workers)
            stack.callback(found.close)
            return found

        yield opened


@each_job
def test_over_objects(site: Any, plan: StepPlan, optimizer: OptimizerSpec, network: dict[str, Any]) -> None:
    plan = job(plan, optimizer, network)
    place = site(plan, 4)
    found, steps, workers = scaled(place.open())
    assert (found, steps, workers) == (wanted(plan, 30), list(range(1, 31)), [4, 1, 6])
    assert [(event.data["from"], event.data["to"]) for event in place.events] == [(4, 1), (1, 6)]


@needs_words
@each_job
def test_in_shared_memory(shared: Any, plan: StepPlan, optimizer: OptimizerSpec, network: dict[str, Any]) -> None:
    plan = job(plan, optimizer, network)
    bench = shared(plan, 4)
    exchange = bench.exchange
    exchange.run_steps(10)
    exchange.scale(1)
    exchange.run_steps(10)
    assert exchange.workers == 1
    exchange.scale(6)
    steps = 20 + bench.until(lambda: exchange.workers == 6)
    exchange.run_steps(10)
    assert weights_sha256(exchange.parameters()) == wanted(plan, steps + 10)
    assert [(event.data["from"], event.data["to"]) for event in bench.events] == [(4, 1), (1, 6)]
    assert exchange.failures == 0


@needs_words
def test_who_leaves_lives_on_and_may_come_back(shared: Any, plan: StepPlan) -> None:
    bench = shared(plan, 3)
    leaver = bench.crew.members[-1]
    bench.exchange.scale(2)
    bench.exchange.run_steps(1)
    assert bench.transport.released == [leaver.name]
    assert bench.transport.alive([leaver])
    bench.transport.recruit = lambda beside: leaver
    bench.exchange.scale(3)
    steps = 1 + bench.until(lambda: bench.exchange.workers == 3)
    assert leaver in bench.crew.members
    assert weights_sha256(bench.exchange.parameters()) == wanted(plan, steps)


@needs_words
def test_a_worker_that_dies_as_it_is_to_leave_is_no_harm(shared: Any, plan: StepPlan) -> None:
    bench = shared(plan, 3)
    bench.exchange.run_steps(3)
    os.kill(bench.crew.attached[bench.crew.members[-1].name].pid, signal.SIGKILL)
    bench.exchange.scale(1)
    bench.exchange.run_steps(5)
    assert bench.exchange.workers == 1
    assert weights_sha256(bench.exchange.parameters()) == wanted(plan, 8)


@needs_words
def test_a_leavers_process_is_not_watched_any_more(shared: Any, plan: StepPlan) -> None:
    bench = shared(plan, 3)
    bench.exchange.run_steps(1)
    before = len(os.listdir("/proc/self/fd"))
    bench.exchange.scale(1)
    bench.exchange.run_steps(1)
    assert len(os.listdir("/proc/self/fd")) == before - 2
