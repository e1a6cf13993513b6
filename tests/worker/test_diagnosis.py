"""Looks inside the network: when, the same numbers from every exchange, and none of the weights' bits."""

import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from benchmarks.processes import Processes
from core.diagnostics import series, update_ratios
from core.network import Network, NetworkSpec
from core.optimizers import OptimizerSpec
from core.parameters import weights_sha256
from worker import futex
from worker.crew import Crew
from worker.dataset import PreparedDataset
from worker.diagnosis import LOOKS, is_due, points
from worker.exchange import Exchange, InProcessExchange
from worker.plan import StepPlan, TrainerEvent
from worker.shared_memory import SharedMemoryExchange

SEED = 5
LOOK_AT = (1, 5, 7, 40)  # steps: the first, an epoch's last and partial one, one within an epoch, one much later
MakeStepPlan = Callable[..., tuple[StepPlan, PreparedDataset]]
Found = dict[int, dict[str, float]]
needs_futex = pytest.mark.skipif(not futex.SUPPORTED, reason="words in shared memory need x86-64 Linux (worker.futex)")


@pytest.fixture
def open_shared() -> Iterator[Callable[[StepPlan, int], tuple[SharedMemoryExchange, Crew]]]:
    """Shared-memory exchanges over real processes, and their crews."""
    with ExitStack() as stack:

        def opened(plan: StepPlan, workers: int) -> tuple[SharedMemoryExchange, Crew]:
            exchange, crew = shared(plan, workers, stack.enter_context(closing(Processes())))
            return stack.enter_context(closing(exchange)), crew

        yield opened


def shared(plan: StepPlan, workers: int, transport: Processes) -> tuple[SharedMemoryExchange, Crew]:
    events: list[TrainerEvent] = []
    crew = Crew(plan, [transport.recruit() for _ in range(workers)], transport, events.append)
    crew.admit(wait=True)
    return SharedMemoryExchange(plan, SEED, crew, transport), crew


def looks(exchange: Exchange) -> Found:
    found, committed = {}, 0
    for step in LOOK_AT:
        exchange.run_steps(step - committed)
        committed = step
        found[step] = exchange.diagnose()
    return found


def oracle(plan: StepPlan) -> Found:
    with closing(InProcessExchange(plan, SEED)) as exchange:
        return looks(exchange)


def same(found: Found, wanted: Found) -> bool:
    """Exactly, NaN included."""
    return repr(found) == repr(wanted)


GRAPH = (
    {"name": "a", "inputs": ("features",), "units": 9, "dropout": 0.3, "activation": "gelu"},
    {"name": "b", "inputs": ("a",), "units": 9, "layer_norm": True},
    {"name": "skip", "inputs": ("features",), "units": 9, "activation": "identity"},
    {"name": "joined", "inputs": ("a", "b", "skip"), "operation": "sum", "activation": "tanh"},
    {"name": "twice", "inputs": ("features", "features"), "operation": "sum"},
    {"name": "all", "inputs": ("joined", "twice"), "operation": "concatenate"},
)


@pytest.fixture(params=["chain", "graph", "threads"])
def each_plan(request: pytest.FixtureRequest, plan: StepPlan) -> StepPlan:
    """A chain with weighted rows; a graph with branches, sum, normalization, all kinds of dropout; two BLAS threads."""
    if request.param == "threads":
        return replace(plan, threads_per_worker=2)
    if request.param == "chain":
        return plan
    graph: Any = GRAPH
    found = plan.network
    network = NetworkSpec(found.inputs, found.outputs, input_noise=0.1, input_dropout=0.1, graph=graph)
    return replace(plan, network=network)


@pytest.mark.parametrize("epochs", [*range(1, 120), 199, 200, 201, 999, 5000])
def test_looks_begin_after_the_first_epoch_are_evenly_spaced_and_few(epochs: int) -> None:
    due = [epoch for epoch in range(1, epochs + 1) if is_due(epoch, epochs)]
    assert due[0] == 1
    assert len({later - earlier for earlier, later in pairwise(due)}) <= 1
    assert min(epochs, LOOKS / 2) <= len(due) <= LOOKS
    if epochs <= LOOKS:
        assert len(due) == epochs


def test_every_so_many_epochs() -> None:
    assert [epoch for epoch in range(1, 11) if is_due(epoch, 10, looks=4)] == [1, 4, 7, 10]


def test_what_is_not_finite_is_no_point() -> None:
    assert points({"a": 0.5, "b": math.inf, "c": math.nan, "d": -math.inf}) == {"diagnostics/a": 0.5}


def test_it_is_shard_0_of_the_last_step_and_that_steps_update(make_step_plan: MakeStepPlan) -> None:
    plan, prepared = make_step_plan("values", dtype="float64", optimizer=OptimizerSpec("sgd", 0.1))
    features, targets, _ = prepared.arrays("train")
    with closing(InProcessExchange(plan, SEED)) as exchange:
        for step in (1, 2, 3):
            before = exchange.parameters()
            exchange.run_steps(1)
            network, gradient = Network(plan.network, 99), np.empty_like(before)
            rows = plan.sampling.order(1, 0)[plan.sampling.part(step, 0)]
            x, t = (array[rows].astype("float64") for array in (features, targets))
            network.loss_and_gradient(before, gradient, x, t)
            ratios = update_ratios(network.layout, before, exchange.parameters())
            assert exchange.diagnose() == pytest.approx(series(network.diagnostics(), ratios), rel=1e-9, nan_ok=True)


def test_the_first_step_moves_biases_from_zero(plan: StepPlan) -> None:
    with closing(InProcessExchange(plan, SEED)) as exchange:
        exchange.run_steps(1)
        first = exchange.diagnose()
        exchange.run_steps(1)
        second = exchange.diagnose()
    assert first["layer1.bias.update_ratio"] == math.inf
    assert math.isfinite(second["layer1.bias.update_ratio"])
    assert 0 < first["layer1.weights.update_ratio"] < 1


@needs_futex
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_shared_memory_sees_what_the_oracle_sees(open_shared: Any, each_plan: StepPlan, workers: int) -> None:
    assert same(looks(open_shared(each_plan, workers)[0]), oracle(each_plan))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_objects_see_what_the_oracle_sees(site: Any, each_plan: StepPlan, workers: int) -> None:
    with closing(site(each_plan, workers).open()) as exchange:
        assert same(looks(exchange), oracle(each_plan))


@pytest.mark.parametrize("fate", ["before", "after"])
def test_a_worker_lost_while_it_looks(site: Any, plan: StepPlan, fate: str) -> None:
    place = site(plan, 2)
    place.workers[0].dies = lambda method, _: fate if method == "diagnose_parts" else ""
    with closing(place.open()) as exchange:
        assert same(looks(exchange), oracle(plan))
        assert exchange.failures == 1


@needs_futex
def test_after_a_worker_was_killed(open_shared: Any, plan: StepPlan) -> None:
    """The step in which it died is done again; the parameters that it began from are still those."""
    exchange, crew = open_shared(plan, 3)
    exchange.run_steps(39)
    os.kill(crew.attached[crew.members[0].name].pid, signal.SIGKILL)
    exchange.run_steps(1)
    assert exchange.failures == 1
    assert repr(exchange.diagnose()) == repr(oracle(plan)[40])


@needs_futex
def test_looking_changes_no_weight(open_shared: Any, site: Any, plan: StepPlan, wanted: str) -> None:
    exchanges = [InProcessExchange(plan, SEED), open_shared(plan, 2)[0], site(plan, 2).open()]
    for exchange in exchanges:
        for _ in range(12):
            exchange.run_steps(1)
            first = exchange.diagnose()
            assert repr(exchange.diagnose()) == repr(first)
        assert weights_sha256(exchange.parameters()) == wanted
    exchanges[0].close()
    exchanges[2].close()


@needs_futex
def test_the_best_parameters_are_not_what_is_looked_at(open_shared: Any, site: Any, plan: StepPlan) -> None:
    for exchange in (open_shared(plan, 2)[0], site(plan, 2).open()):
        exchange.run_steps(1)
        exchange.keep_best()
        exchange.run_steps(4)
        assert repr(exchange.diagnose()) == repr(oracle(plan)[5])


@needs_futex
def test_the_plans_threads_are_enforced_and_given_back(plan: StepPlan) -> None:
    with threadpool_limits(1, user_api="blas"), closing(Processes()) as transport:
        exchange, _ = shared(replace(plan, threads_per_worker=2), 1, transport)
        exchange.run_steps(1)
        exchange.diagnose()
        assert blas_threads() == {2}
        exchange.close()
        assert blas_threads() == {1}


def blas_threads() -> set[int]:
    return {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}


@needs_futex
def test_who_does_not_look_pays_nothing(open_shared: Any, plan: StepPlan) -> None:
    """The trainer's process maps no rows and plans no buffers before the first look."""
    exchange, _ = open_shared(plan, 1)
    exchange.run_steps(3)
    exchange.evaluate("validation")
    assert exchange._observer is None
