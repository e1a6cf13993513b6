"""The shared-memory exchange over real processes: the oracle's bits, whoever computes, dies or hangs."""

import errno
import gc
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import zip_longest
from multiprocessing.synchronize import Semaphore
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.processes import Processes, SlowedWorker
from core.optimizers import OptimizerSpec
from core.parameters import weights_sha256
from worker import futex, seat, segment, shared_memory
from worker.claims import Claims
from worker.crew import Crew
from worker.errors import Diverged, ShardMissing, TooManyFailures
from worker.exchange import InProcessExchange
from worker.gradient_worker import GradientWorker
from worker.plan import ShardReport, StepPlan, StepReport, TrainerEvent
from worker.seat import Seating
from worker.segment import Segment
from worker.shared_memory import SharedMemoryExchange

pytestmark = pytest.mark.skipif(not futex.SUPPORTED, reason="words in shared memory need x86-64 Linux (worker.futex)")
SEED, STEPS = 5, 40
PATIENCE_S = 30.0  # for another process of the test


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that the tests' networks have many, and each seat that reduces has some."""
    monkeypatch.setattr("core.parameters.BLOCK", 64)


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


class DiesWithAClaim(GradientWorker):
    """Its process ends in the middle of the first shard that it has."""

    def gradient(self, step: int, shard: int, parameters: np.ndarray, gradient: np.ndarray) -> ShardReport:
        gradient[: gradient.size // 2] = np.nan  # half of it is written
        for _ in range(9):
            Meeting.begun.release()
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("a process that was killed goes on")


class Survivor(GradientWorker):
    """It begins when the other has begun."""

    def gradient(self, step: int, shard: int, parameters: np.ndarray, gradient: np.ndarray) -> ShardReport:
        await_the_other(self)
        return super().gradient(step, shard, parameters, gradient)


@pytest.mark.usefixtures("meeting")
@pytest.mark.parametrize("claiming", [True, False], ids=["claimed", "dealt"])
@pytest.mark.parametrize("workers", [2, 3, 5])
def test_who_dies_with_a_claim_leaves_it_to_others(
    open_bench: type[Bench], plan: StepPlan, workers: int, claiming: bool
) -> None:
    plan = shards(plan, 8)
    bench = open_bench(plan, workers, claiming, (DiesWithAClaim, *[Survivor] * (workers - 1)))
    reports = bench.exchange.run_steps(STEPS)
    assert (weights_sha256(bench.exchange.parameters()), reports) == oracle(plan)[:2]
    assert bench.exchange.failures == 1


class DiesLater(GradientWorker):
    """Its process ends when step 7 begins."""

    def gradient(self, step: int, shard: int, parameters: np.ndarray, gradient: np.ndarray) -> ShardReport:
        if step == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().gradient(step, shard, parameters, gradient)


class Leisurely(GradientWorker):
    """A gradient is a matter of 0.3 s to it."""

    def gradient(self, step: int, shard: int, parameters: np.ndarray, gradient: np.ndarray) -> ShardReport:
        time.sleep(0.3)
        return super().gradient(step, shard, parameters, gradient)


def test_who_is_at_a_long_step_is_not_killed_for_it(
    open_bench: type[Bench], plan: StepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "STOP_S", 0.05)
    bench = open_bench(shards(plan, 2), 2, kinds=(DiesLater, Leisurely))
    bench.exchange.run_steps(6)
    survivor = bench.pid(1)
    bench.exchange.run_steps(1)
    assert bench.exchange.failures == 1
    assert survivor in {bench.pid(number) for number in range(bench.exchange.workers)}
    assert weights_sha256(bench.exchange.parameters()) == oracle(shards(plan, 2), 7)[0]


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


class DiesAtACommit(GradientWorker):
    """Its process ends in place of committing step 5, once another is in the middle of the next one's gradient."""

    def take_seat(self, seating: Seating) -> None:
        commit = Segment.commit

        def dies(segment: Segment, step: int, report: tuple[float, ...]) -> None:
            if step == 5:
                Meeting.begun.acquire(timeout=PATIENCE_S)
                os.kill(os.getpid(), signal.SIGKILL)
            commit(segment, step, report)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Segment, "commit", dies)
            super().take_seat(seating)


class DiesAhead(GradientWorker):
    """Its process ends when it has half written a gradient of step 6."""

    def gradient(self, step: int, shard: int, parameters: np.ndarray, gradient: np.ndarray) -> ShardReport:
        if step == 6:
            gradient[: gradient.size // 2] = 7.0
            Meeting.begun.release()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().gradient(step, shard, parameters, gradient)


@pytest.mark.usefixtures("meeting")
@pytest.mark.parametrize("clip_norm", [None, 0.1], ids=["", "clipped"])
@pytest.mark.parametrize("claiming", [True, False], ids=["claimed", "dealt"])
def test_a_gradient_that_was_half_written_ahead_of_a_lost_commit_is_not_taken_for_the_one_before(
    open_bench: type[Bench], plan: StepPlan, claiming: bool, clip_norm: float | None
) -> None:
    plan = shards(replace(plan, optimizer=OptimizerSpec("sgd", 0.05, momentum=0.9, clip_norm=clip_norm)), 8)
    bench = open_bench(plan, 3, claiming, (DiesAtACommit, DiesAhead))
    reports = bench.exchange.run_steps(STEPS)
    assert (weights_sha256(bench.exchange.parameters()), reports) == oracle(plan)[:2]
    assert bench.exchange.failures == 2


class Standing(GradientWorker):
    """It has no descriptor left for a seat."""

    def take_seat(self, seating: Seating) -> None:
        raise OSError(errno.EMFILE, "Too many open files")


def test_a_seat_that_cannot_be_taken_ends_the_job_with_the_reason(
    open_bench: type[Bench], plan: StepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "SILENCE_S", 0.5)
    bench = open_bench(plan, 2, kinds=(Standing,))
    with pytest.raises(OSError, match="Too many open files"):
        bench.exchange.run_steps(1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_worker_that_is_gone_before_a_command(
    open_bench: type[Bench], plan: StepPlan, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "SILENCE_S", 0.5)
    plan = shards(plan, 8)
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
@pytest.mark.parametrize("claiming", [True, False], ids=["claimed", "dealt"])
def test_randomly_timed_deaths_change_nothing(
    open_bench: type[Bench], plan: StepPlan, seed: int, claiming: bool
) -> None:
    plan, rng = shards(plan, 8), random.Random(seed)
    steps = 300
    bench = open_bench(plan, 4, claiming)
    over = threading.Event()

    def kill() -> None:
        for _ in range(3):
            if over.wait(rng.random() * 0.1):
                return
            members = list(bench.crew.members)
            if members:
                with suppress(ProcessLookupError):  # it was killed before
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


class DiesLeaving(GradientWorker):
    """Is killed when it has left its seat in order, before anybody has heard so."""

    def take_seat(self, seating: Seating) -> None:
        super().take_seat(seating)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_lost_while_all_leave_their_seats_is_lost_like_any_other(
    open_bench: type[Bench], plan: StepPlan
) -> None:
    bench, steps = open_bench(shards(plan, 8), 3, kinds=(DiesLeaving,)), 5
    bench.exchange.run_steps(5)
    os.kill(bench.pid(2), signal.SIGKILL)  # who comes in its place has all leave
    while not (bench.exchange.failures == 2 and bench.exchange.workers == 3):
        bench.exchange.run_steps(1)
        steps += 1
    assert weights_sha256(bench.exchange.parameters()) == oracle(shards(plan, 8), steps)[0]
    assert [event.type for event in bench.events if event.level == "warning"] == ["fault", "fault"]


def test_too_many_deaths_end_the_job(open_bench: type[Bench], plan: StepPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.crew.FAILURES_ALLOWED", 1)
    bench = open_bench(plan, 3)
    os.kill(bench.pid(0), signal.SIGKILL)
    bench.exchange.run_steps(1)
    os.kill(bench.pid(0), signal.SIGKILL)
    with pytest.raises(TooManyFailures):
        bench.exchange.run_steps(STEPS)


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
