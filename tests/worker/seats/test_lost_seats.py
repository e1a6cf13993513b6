"""Workers that die or hang in the shared-memory exchange: the oracle's bits all the same."""

import errno
import os
import random
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from core.optimizers import OptimizerSpec
from core.parameters import weights_sha256
from worker import futex, shared_memory
from worker.errors import TooManyFailures
from worker.gradient_worker import GradientWorker
from worker.plan import ShardReport, StepPlan, StepReport
from worker.seat import Seating
from worker.segment import Segment

from .conftest import PATIENCE_S, STEPS, Bench, Meeting, await_the_other, oracle, shards

pytestmark = [
    pytest.mark.skipif(not futex.SUPPORTED, reason="words in shared memory need x86-64 Linux (worker.futex)"),
    pytest.mark.usefixtures("small_blocks"),
]


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
