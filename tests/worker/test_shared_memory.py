"""The shared-memory exchange over real processes: the oracle's bits, whoever computes, dies or hangs."""

import gc
import os
import random
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.processes import Processes
from core.optimizers import OptimizerSpec
from core.parameters import weights_sha256
from worker import futex, seat, segment, shared_memory
from worker.crew import Crew
from worker.errors import Diverged, TooManyFailures
from worker.exchange import InProcessExchange
from worker.plan import StepPlan, StepReport, TrainerEvent
from worker.shared_memory import SharedMemoryExchange

pytestmark = pytest.mark.skipif(not futex.SUPPORTED, reason="words in shared memory need x86-64 Linux (worker.futex)")
SEED, STEPS = 5, 40


class Bench:
    """An exchange over real processes."""

    def __init__(self, plan: StepPlan, workers: int) -> None:
        self.transport, self.events = Processes(), list[TrainerEvent]()
        crew = Crew(plan, [self.transport.recruit() for _ in range(workers)], self.transport, self.events.append)
        crew.admit(wait=True)
        self.crew = crew
        self.exchange = SharedMemoryExchange(plan, SEED, crew, self.transport)

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
        def __init__(self, plan: StepPlan, workers: int) -> None:
            super().__init__(plan, workers)
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


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_any_number_of_workers_gives_the_oracles_bits(open_bench: type[Bench], plan: StepPlan, workers: int) -> None:
    plan = shards(plan, 8)
    wanted = oracle(plan)
    exchange = open_bench(plan, workers).exchange
    reports = exchange.run_steps(1) + exchange.run_steps(STEPS - 1)
    assert (weights_sha256(exchange.parameters()), reports) == wanted[:2]
    assert (exchange.evaluate("validation") == wanted[2]).all()
    assert exchange.workers == workers


@pytest.mark.parametrize(
    "optimizer",
    [
        OptimizerSpec("sgd", 0.05),
        OptimizerSpec("sgd", 0.02, momentum=0.9, nesterov=True, clip_norm=0.1),
        OptimizerSpec("adamw", 1e-3, weight_decay=0.01, clip_norm=1.0),
    ],
    ids=lambda spec: f"{spec.name} {spec.momentum}",
)
def test_every_optimizer_gives_the_oracles_bits(
    open_bench: type[Bench], plan: StepPlan, optimizer: OptimizerSpec
) -> None:
    plan = replace(plan, optimizer=optimizer)
    exchange = open_bench(plan, 2).exchange
    reports = exchange.run_steps(STEPS)
    assert (weights_sha256(exchange.parameters()), reports) == oracle(plan)[:2]


def test_the_best_parameters_stay_while_training_goes_on(open_bench: type[Bench], plan: StepPlan) -> None:
    exchange = open_bench(plan, 2).exchange
    exchange.run_steps(3)
    exchange.keep_best()
    kept = exchange.parameters()
    exchange.run_steps(2)
    assert (exchange.parameters("best") == kept).all()
    assert (exchange.parameters() != kept).any()
    assert (exchange.evaluate("validation", "best") != exchange.evaluate("validation")).any()


def test_more_steps_than_reports_are_kept(
    open_bench: type[Bench], plan: StepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (shared_memory, seat, segment):
        monkeypatch.setattr(module, "REPORTS_KEPT", 16)
    reports = open_bench(plan, 2).exchange.run_steps(STEPS)
    assert [report.step for report in reports] == list(range(1, STEPS + 1))


def test_divergence_names_step_and_shard_and_commits_nothing(open_bench: type[Bench], plan: StepPlan) -> None:
    plan = replace(plan, optimizer=OptimizerSpec("sgd", 1e30))
    with pytest.raises(Diverged) as expected:
        oracle(plan)
    bench = open_bench(plan, 2)
    with pytest.raises(Diverged) as found:
        bench.exchange.run_steps(STEPS)
    assert (found.value.step, found.value.shard) == (expected.value.step, expected.value.shard)
    assert np.isfinite(bench.exchange.parameters()).all()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_worker_that_is_gone_before_a_command(
    open_bench: type[Bench], plan: StepPlan, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "SILENCE_S", 0.5)
    monkeypatch.setattr(shared_memory, "STOP_S", 0.2)
    bench = open_bench(plan, 3)
    reports = bench.exchange.run_steps(10)
    pid = bench.pid(1)
    os.kill(pid, number)
    reports += bench.exchange.run_steps(STEPS - 10)
    assert (weights_sha256(bench.exchange.parameters()), reports) == oracle(plan)[:2]
    assert bench.exchange.failures == 1
    assert [event.type for event in bench.events] == ["fault"]
    assert pid not in {attached.pid for attached in map(lambda w: bench.crew.attached[w.name], bench.crew.members)}


def test_the_last_worker_is_replaced(open_bench: type[Bench], plan: StepPlan) -> None:
    bench = open_bench(plan, 1)
    bench.exchange.run_steps(5)
    os.kill(bench.pid(0), signal.SIGKILL)
    bench.exchange.run_steps(STEPS - 5)
    assert weights_sha256(bench.exchange.parameters()) == oracle(plan)[0]


@pytest.mark.parametrize("seed", range(3))
def test_randomly_timed_deaths_change_nothing(open_bench: type[Bench], plan: StepPlan, seed: int) -> None:
    plan, rng = shards(plan, 8), random.Random(seed)
    steps = 300
    bench = open_bench(plan, 4)
    over = threading.Event()

    def kill() -> None:
        for _ in range(3):
            if over.wait(rng.random() * 0.1):
                return
            members = list(bench.crew.members)
            if members:
                os.kill(bench.crew.attached[rng.choice(members).name].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    reports: list[StepReport] = []
    while len(reports) < steps:
        reports += bench.exchange.run_steps(min(25, steps - len(reports)))
    over.set()
    killer.join()
    assert (weights_sha256(bench.exchange.parameters()), reports) == oracle(plan, steps)[:2]
    assert bench.exchange.failures <= 3


def test_a_new_worker_joins_between_steps(open_bench: type[Bench], plan: StepPlan) -> None:
    bench = open_bench(shards(plan, 8), 2)
    bench.exchange.run_steps(5)
    os.kill(bench.pid(0), signal.SIGKILL)
    steps = 5
    while not (bench.exchange.failures and bench.exchange.workers == 2):
        bench.exchange.run_steps(1)
        steps += 1
    bench.exchange.run_steps(5)
    assert weights_sha256(bench.exchange.parameters()) == oracle(shards(plan, 8), steps + 5)[0]


def test_too_many_deaths_end_the_job(open_bench: type[Bench], plan: StepPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.crew.FAILURES_ALLOWED", 1)
    bench = open_bench(plan, 3)
    os.kill(bench.pid(0), signal.SIGKILL)
    bench.exchange.run_steps(1)
    os.kill(bench.pid(0), signal.SIGKILL)
    with pytest.raises(TooManyFailures):
        bench.exchange.run_steps(STEPS)


def test_nothing_is_left_when_it_is_closed(open_bench: type[Bench], plan: StepPlan) -> None:
    gc.collect()  # what earlier tests have left to it
    before = set(os.listdir("/proc/self/fd"))
    bench = Bench(plan, 2)
    bench.exchange.run_steps(2)
    bench.close()
    del bench
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= before
