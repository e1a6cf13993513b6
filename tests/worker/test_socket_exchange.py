"""The exchange over sockets, over real processes: the same bits, whoever is lost and however."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.processes import Processes
from core.optimizers import OptimizerSpec
from core.parameters import weights_sha256
from worker.aggregator import ParameterAggregator
from worker.crew import Crew
from worker.errors import Diverged, RemoteLost
from worker.exchange import InProcessExchange
from worker.gradient_worker import GradientWorker
from worker.plan import Attached, StepPlan, StepReport, TrainerEvent
from worker.socket_exchange import SocketExchange

SEED, STEPS = 5, 12  # of the fixture `wanted`
OPTIMIZERS = {
    "sgd": OptimizerSpec("sgd", 0.05),
    "adamw, clipped": OptimizerSpec("adamw", 0.01, weight_decay=0.01, clip_norm=0.1),
}


class Elsewhere(GradientWorker):
    """A worker that says it is on another machine: its vectors go over the links."""

    def attach(self, plan: StepPlan) -> Attached:
        return replace(super().attach(plan), machine="another")


class Bench:
    """A socket exchange over processes of this machine, with all that tests look at or break."""

    def __init__(self, plan: StepPlan, workers: int, shares: int, apart: int = 0) -> None:
        """`apart`: how many of the workers are as if they were on another machine."""
        self.transport, self.events = Processes(), list[TrainerEvent]()
        kinds = [Elsewhere] * apart + [GradientWorker] * (workers - apart)
        self.workers = [self.transport.recruit(kind) for kind in kinds]
        self.aggregators = [self.transport.recruit(ParameterAggregator) for _ in range(shares)]
        self.crew = Crew(plan, self.workers, self.transport, self.events.append)
        self.crew.admit(wait=True)
        self.exchange = SocketExchange(plan, SEED, self.crew, self.aggregators, self.transport)

    def close(self) -> None:
        self.exchange.close()
        self.transport.close()


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    with ExitStack() as stack:

        def opened(*arguments: Any, **named: Any) -> Bench:
            found = Bench(*arguments, **named)
            stack.callback(found.close)
            return found

        yield opened


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that the tests' networks have many."""
    monkeypatch.setattr("core.parameters.BLOCK", 64)


def undisturbed(plan: StepPlan, steps: int = STEPS) -> tuple[str, list[StepReport]]:
    with closing(InProcessExchange(plan, SEED)) as exchange:
        reports = exchange.run_steps(steps)
        return weights_sha256(exchange.parameters()), reports


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("workers", "shares", "apart"), [(1, 1, 0), (1, 2, 1), (2, 2, 0), (2, 2, 1), (3, 3, 3), (5, 11, 2)]
)
def test_the_bits_and_the_reports_are_those_of_one_process(
    bench: Any, plan: StepPlan, optimizer: str, workers: int, shares: int, apart: int
) -> None:
    plan = replace(plan, optimizer=OPTIMIZERS[optimizer], network=replace(plan.network, dropout=0.2))
    exchange = bench(plan, workers, shares, apart).exchange
    reports = [report for count in (1, 0, STEPS - 1) for report in exchange.run_steps(count)]
    assert (weights_sha256(exchange.parameters()), reports) == undisturbed(plan)
    with closing(InProcessExchange(plan, SEED)) as oracle:
        oracle.run_steps(STEPS)
        for split in ("validation", "test"):
            assert exchange.evaluate(split).tobytes() == oracle.evaluate(split).tobytes()
        assert exchange.diagnose() == oracle.diagnose()
        assert exchange.snapshot().tobytes() == oracle.snapshot().tobytes()


def test_a_killed_worker_costs_no_bit(bench: Any, plan: StepPlan) -> None:
    place = bench(plan, 3, 2, apart=1)
    wanted, wanted_reports = undisturbed(plan, 600)
    reports = place.exchange.run_steps(100)
    os.kill(place.workers[0].process.pid, signal.SIGKILL)
    while len(reports) < 600:
        reports += place.exchange.run_steps(100)
    assert (weights_sha256(place.exchange.parameters()), reports) == (wanted, wanted_reports)
    assert place.exchange.failures == 1


def test_divergence_names_step_and_shard(bench: Any, plan: StepPlan) -> None:
    steep = replace(plan, optimizer=OptimizerSpec("sgd", 1e6))
    exchange = bench(steep, 2, 2).exchange
    with closing(InProcessExchange(steep, SEED)) as oracle:
        with pytest.raises(Diverged) as wanted:
            oracle.run_steps(200)
        with pytest.raises(Diverged) as found:
            exchange.run_steps(200)
        assert found.value.args == wanted.value.args
        assert exchange.parameters().tobytes() == oracle.parameters().tobytes()


def test_the_loss_of_an_aggregator_ends_it(bench: Any, plan: StepPlan) -> None:
    place = bench(plan, 2, 2)
    place.exchange.run_steps(3)
    os.kill(place.aggregators[1].process.pid, signal.SIGKILL)
    with pytest.raises(RemoteLost):
        place.exchange.run_steps(1)
