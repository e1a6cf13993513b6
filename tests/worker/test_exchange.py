"""Exchanges: one contract for all of them, and the same bits from all of them."""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from core.network import Network, initial_parameters
from core.optimizers import OptimizerSpec
from core.parameters import weights_sha256
from worker.errors import Diverged
from worker.exchange import Exchange, InProcessExchange, merge
from worker.numerics import fingerprint
from worker.plan import StepPlan

OpenExchange = Callable[[StepPlan], closing[Exchange]]
SEED, STEPS = 5, 12  # of the fixture `wanted`
MANY = 50  # more steps than are ever chained ahead

# Every exchange keeps the contract; more workers than shards, too.
EXCHANGES = ["in process", *(f"objects, {workers} workers" for workers in (1, 2, 3, 5))]


@pytest.fixture(params=EXCHANGES)
def open_exchange(request: pytest.FixtureRequest, site: Any) -> OpenExchange:
    def opened(plan: StepPlan) -> closing[Exchange]:
        if request.param == "in process":
            return closing(InProcessExchange(plan, SEED))
        return closing(site(plan, int(request.param.split()[1])).open())

    return opened


def test_steps_follow_each_other_to_the_same_bits(open_exchange: OpenExchange, plan: StepPlan, wanted: str) -> None:
    with open_exchange(plan) as exchange:
        assert weights_sha256(exchange.parameters()) == weights_sha256(initial_parameters(plan.network, SEED))
        reports = [report for count in (1, 4, 0, STEPS - 5) for report in exchange.run_steps(count)]
        assert [report.step for report in reports] == list(range(1, STEPS + 1))
        assert weights_sha256(exchange.parameters()) == wanted
        assert [report.rows for report in reports[:5]] == [32, 32, 32, 32, plan.sampling.rows - 128]
        assert exchange.failures == 0
        assert exchange.numerics == fingerprint()
    with closing(InProcessExchange(plan, SEED)) as oracle:
        assert oracle.run_steps(STEPS) == reports


def test_many_steps_at_once(open_exchange: OpenExchange, plan: StepPlan) -> None:
    with open_exchange(plan) as one, open_exchange(plan) as other:
        reports = one.run_steps(MANY)
        assert [report.step for report in reports] == list(range(1, MANY + 1))
        for _ in range(MANY):
            other.run_steps(1)
        assert weights_sha256(one.parameters()) == weights_sha256(other.parameters())


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_is_of_the_whole_split(open_exchange: OpenExchange, make_step_plan: Any, split: str) -> None:
    plan, prepared = make_step_plan("values", shards=5)
    arrays = prepared.arrays(split)
    with open_exchange(plan) as exchange, closing(InProcessExchange(plan, SEED)) as oracle:
        for each in (exchange, oracle):
            each.run_steps(STEPS)
        sums = exchange.evaluate(split)
        whole = Network(plan.network, len(arrays[0])).evaluate(exchange.parameters(), *arrays)
        assert sums.tobytes() == oracle.evaluate(split).tobytes()
        np.testing.assert_allclose(sums, whole, rtol=1e-6)


def test_metric_sums_are_merged_in_shard_order() -> None:
    parts = [np.array([1.0, loss, 0.0]) for loss in (1e16, 1.0, 1.0)]
    assert merge("cross_entropy", 3, parts).tolist() == [3.0, 1e16, 0.0]
    assert merge("cross_entropy", 3, parts[::-1]).tolist() == [3.0, 1e16 + 2, 0.0]
    assert merge("squared_error", 2, []).tolist() == [0.0] * 10


def test_the_best_parameters_are_kept_and_evaluated(open_exchange: OpenExchange, plan: StepPlan) -> None:
    with open_exchange(plan) as exchange:
        exchange.run_steps(3)
        best, sums = exchange.parameters(), exchange.evaluate("validation")
        exchange.keep_best()
        exchange.run_steps(3)
        assert exchange.parameters("best").tobytes() == best.tobytes()
        assert exchange.evaluate("validation", "best").tobytes() == sums.tobytes()
        assert exchange.parameters("current").tobytes() != best.tobytes()
        assert exchange.evaluate("validation", "current").tobytes() != sums.tobytes()


def test_parameters_are_a_copy(open_exchange: OpenExchange, plan: StepPlan, wanted: str) -> None:
    with open_exchange(plan) as exchange:
        exchange.run_steps(1)
        for which in ("current", "best"):
            exchange.parameters(which)[...] = math.nan
        exchange.run_steps(STEPS - 1)
        assert weights_sha256(exchange.parameters()) == wanted
        assert np.isfinite(exchange.parameters("best")).all()


def test_divergence_ends_at_the_last_good_step(open_exchange: OpenExchange, plan: StepPlan) -> None:
    steep = replace(plan, optimizer=OptimizerSpec("sgd", 1e6))
    with open_exchange(steep) as exchange, open_exchange(steep) as other:
        with pytest.raises(Diverged) as diverged:
            exchange.run_steps(200)
        assert 1 < diverged.value.step < 200
        assert diverged.value.shard in (0, 1, 2)
        other.run_steps(diverged.value.step - 1)
        assert exchange.parameters().tobytes() == other.parameters().tobytes()


def test_the_plans_threads_are_enforced(open_exchange: OpenExchange, plan: StepPlan) -> None:
    with threadpool_limits(1, user_api="blas"), open_exchange(replace(plan, threads_per_worker=2)) as exchange:
        exchange.run_steps(1)
        assert {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"} == {2}


def test_the_process_gets_its_threads_back(plan: StepPlan) -> None:
    with threadpool_limits(2, user_api="blas"):
        InProcessExchange(plan, SEED).close()
        assert {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"} == {2}
