"""The shared-memory exchange: the oracle's bits, whoever computes."""

import gc
import os
from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.processes import SlowedWorker
from core.optimizers import OptimizerSpec
from core.parameters import weights_sha256
from worker import futex, seat, segment, shared_memory
from worker.claims import Claims
from worker.errors import Diverged, ShardMissing
from worker.gradient_worker import GradientWorker
from worker.plan import ShardReport, StepPlan

from .conftest import PATIENCE_S, STEPS, Bench, Meeting, await_the_other, oracle, shards

pytestmark = [
    pytest.mark.skipif(not futex.SUPPORTED, reason="words in shared memory need x86-64 Linux (worker.futex)"),
    pytest.mark.usefixtures("small_blocks"),
]


@pytest.mark.parametrize("claiming", [True, False], ids=["claimed", "dealt"])
@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8])
def test_any_number_of_workers_gives_the_oracles_bits(
    open_bench: type[Bench], plan: StepPlan, workers: int, claiming: bool
) -> None:
    plan = shards(plan, 8)
    wanted = oracle(plan)
    exchange = open_bench(plan, workers, claiming).exchange
    reports = exchange.run_steps(1) + exchange.run_steps(STEPS - 1)
    assert (weights_sha256(exchange.parameters()), reports) == wanted[:2]
    assert (exchange.evaluate("validation") == wanted[2]).all()
    assert exchange.workers == workers


@pytest.mark.parametrize(
    ("optimizer", "network"),
    [
        (OptimizerSpec("sgd", 0.05), {}),
        (OptimizerSpec("sgd", 0.02, momentum=0.9), {}),
        (OptimizerSpec("sgd", 0.02, momentum=0.9, nesterov=True, clip_norm=0.1), {}),
        (OptimizerSpec("adam", 1e-3), {}),
        (OptimizerSpec("adamw", 1e-3, weight_decay=0.01, clip_norm=1.0), {}),
        (OptimizerSpec("adam", 1e-3), {"dropout": 0.3}),
        (OptimizerSpec("adam", 1e-3), {"layer_norm": True}),
    ],
    ids=["sgd", "momentum", "nesterov", "adam", "adamw", "dropout", "layer norm"],
)
def test_every_job_has_one_hash_whoever_computes_what(
    open_bench: type[Bench], plan: StepPlan, optimizer: OptimizerSpec, network: dict[str, Any]
) -> None:
    plan = shards(replace(plan, optimizer=optimizer, network=replace(plan.network, **network)), 8)
    wanted = oracle(plan)
    for workers, claiming in ((1, False), (2, True), (2, False), (3, True), (5, True), (5, False), (8, False)):
        exchange = open_bench(plan, workers, claiming).exchange
        reports = exchange.run_steps(STEPS)
        assert (weights_sha256(exchange.parameters()), reports) == wanted[:2], (workers, claiming)


class Quick(GradientWorker):
    """In the first step it begins when Stuck has, and counts what it does."""

    def gradient(self, step: int, shard: int, parameters: np.ndarray, gradient: np.ndarray) -> ShardReport:
        if step == 1:
            await_the_other(self)
        report = super().gradient(step, shard, parameters, gradient)
        if step == 1:
            Meeting.done.release()
        return report


class Stuck(GradientWorker):
    """In the first step it is done with the one shard it has begun when all others are done."""

    def gradient(self, step: int, shard: int, parameters: np.ndarray, gradient: np.ndarray) -> ShardReport:
        if step == 1:
            Meeting.begun.release()
            assert all(Meeting.done.acquire(timeout=PATIENCE_S) for _ in range(7)), "nobody does what is left"
        return super().gradient(step, shard, parameters, gradient)


@pytest.mark.usefixtures("meeting")
def test_what_the_slow_have_not_begun_the_fast_take_over(open_bench: type[Bench], plan: StepPlan) -> None:
    plan = shards(plan, 8)
    exchange = open_bench(plan, 2, kinds=(Quick, Stuck)).exchange
    reports = exchange.run_steps(STEPS)
    assert (weights_sha256(exchange.parameters()), reports) == oracle(plan)[:2]


@pytest.mark.parametrize("claiming", [True, False], ids=["claimed", "dealt"])
def test_a_slow_worker_changes_nothing(open_bench: type[Bench], plan: StepPlan, claiming: bool) -> None:
    plan = shards(plan, 8)
    exchange = open_bench(plan, 2, claiming, (SlowedWorker,)).exchange
    reports = exchange.run_steps(STEPS)
    assert (weights_sha256(exchange.parameters()), reports) == oracle(plan)[:2]
    assert (exchange.evaluate("validation") == oracle(plan)[2]).all()


def test_a_step_that_lacks_a_shard_is_not_committed(
    open_bench: type[Bench], plan: StepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer = Claims.offer

    def forget(claims: Claims, step: int, among: Iterable[int], takers: int) -> None:
        offer(claims, step, [shard for shard in among if shard != 5], takers)

    monkeypatch.setattr(Claims, "offer", forget)
    bench = open_bench(shards(plan, 8), 2)
    with pytest.raises(ShardMissing) as found:
        bench.exchange.run_steps(1)
    assert (found.value.step, found.value.shard) == (1, 5)


def test_an_evaluation_that_lacks_a_shard_is_not_believed(
    open_bench: type[Bench], plan: StepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = open_bench(shards(plan, 8), 2)
    bench.exchange.evaluate("validation")
    monkeypatch.setattr(Claims, "offer", lambda claims, step, among, takers: None)
    with pytest.raises(ShardMissing):
        bench.exchange.evaluate("validation")


def test_evaluations_follow_one_another_whoever_is_slow(open_bench: type[Bench], plan: StepPlan) -> None:
    plan = shards(plan, 8)
    exchange = open_bench(plan, 3, True, (SlowedWorker, SlowedWorker)).exchange
    for step in range(1, 9):
        exchange.run_steps(3)
        wanted = oracle(plan, 3 * step)[2]
        for _ in range(3):
            assert (exchange.evaluate("validation") == wanted).all()


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
    for module in (shared_memory, segment):
        monkeypatch.setattr(module, "REPORTS_KEPT", 16)
    reports = open_bench(plan, 2).exchange.run_steps(STEPS)
    assert [report.step for report in reports] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("clip_norm", [None, 1e30], ids=["", "clipped"])
@pytest.mark.parametrize(
    ("rate", "l1", "what"), [(1e12, 0.0, "gradient"), (1e30, 0.0, "loss"), (1e30, 1e30, "weight vector")]
)
def test_divergence_is_the_same_for_all_and_commits_nothing(
    open_bench: type[Bench],
    plan: StepPlan,
    rate: float,
    l1: float,
    what: str,
    clip_norm: float | None,
    workers: int,
) -> None:
    plan = shards(replace(plan, optimizer=OptimizerSpec("sgd", rate, l1=l1, clip_norm=clip_norm)), 4)
    with pytest.raises(Diverged) as expected:
        oracle(plan)
    bench = open_bench(plan, workers)
    with pytest.raises(Diverged, match=what) as found:
        bench.exchange.run_steps(STEPS)
    assert str(found.value) == str(expected.value)
    assert (found.value.step, found.value.shard) == (expected.value.step, expected.value.shard)
    assert np.isfinite(bench.exchange.parameters()).all()


@pytest.mark.parametrize("far", [seat.FAR, 0.0])
def test_of_plain_updates_it_is_known_that_they_are_finite_as_long_as_they_are_near(
    open_bench: type[Bench], plan: StepPlan, monkeypatch: pytest.MonkeyPatch, far: float
) -> None:
    """What looks at them says that they are not, from the second step on."""
    plan = replace(plan, optimizer=OptimizerSpec("sgd", 0.05))
    wanted, blocks, looks = oracle(plan)[:2], shared_memory.segment_layout(plan, 1).blocks, list[int]()
    monkeypatch.setattr(seat, "FAR", far)
    monkeypatch.setattr(seat, "is_finite", lambda values: looks.append(1) or len(looks) <= blocks)
    bench = open_bench(plan, 1)
    if far:
        reports = bench.exchange.run_steps(STEPS)
        assert (weights_sha256(bench.exchange.parameters()), reports) == wanted
    else:
        with pytest.raises(Diverged, match="step 2: the weight vector"):
            bench.exchange.run_steps(STEPS)


@pytest.mark.parametrize(("factor", "is_looked_at"), [(1e3, False), (1e39, True)])
def test_parameters_are_looked_at_where_the_squares_could_hide_what_the_factor_makes_of_them(
    factor: float, is_looked_at: bool
) -> None:
    held: Any = object.__new__(seat.Seat)
    held._optimizer = SimpleNamespace(is_plain=True)
    held._segment = SimpleNamespace(block_reaches=np.array([1.0]), block_squares=np.array([0.0]))
    block: Any = SimpleNamespace(number=0)
    assert held._is_finite(block, np.array([np.inf], np.float32), factor) is not is_looked_at


def threads(pid: int) -> list[set[int]]:
    """The cores that each of the process's threads may run on: only one of them sits."""
    return [os.sched_getaffinity(int(thread)) for thread in os.listdir(f"/proc/{pid}/task")]


def test_where_seats_outnumber_cores_each_keeps_to_one_while_it_sits(open_bench: type[Bench], plan: StepPlan) -> None:
    cores = os.sched_getaffinity(0)
    bench = open_bench(shards(plan, len(cores) + 1), len(cores) + 1)
    bench.exchange.run_steps(1)
    pids = [bench.pid(number) for number in range(len(cores) + 1)]
    kept = [min(threads(pid), key=len) for pid in pids]
    assert all(len(each) == 1 for each in kept)
    assert set().union(*kept) == cores
    bench.exchange.scale(1)
    bench.exchange.run_steps(1)
    assert all(thread == cores for pid in pids for thread in threads(pid))


def test_nothing_is_left_when_it_is_closed(open_bench: type[Bench], plan: StepPlan) -> None:
    gc.collect()  # what earlier tests have left to it
    before = set(os.listdir("/proc/self/fd"))
    bench = Bench(plan, 2)
    bench.exchange.run_steps(2)
    bench.close()
    del bench
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= before
