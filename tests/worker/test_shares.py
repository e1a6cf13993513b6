"""Several aggregators share the vector, a few blocks each: the bits of one, each step by all or by none."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.network import network_graph, parameter_layout
from core.optimizers import OptimizerSpec
from core.parameters import weights_sha256
from worker.aggregator import ParameterAggregator
from worker.errors import Diverged, RemoteLost, StepRefused
from worker.exchange import InProcessExchange
from worker.plan import Reduced, ShardReport, StepPlan, StepReport

SEED, STEPS = 5, 12
OPTIMIZERS = {
    "sgd": OptimizerSpec("sgd", 0.05),
    "momentum": OptimizerSpec("sgd", 0.05, momentum=0.9),
    "adamw, clipped": OptimizerSpec("adamw", 0.01, weight_decay=0.01, clip_norm=0.1),
}


@pytest.fixture(autouse=True)
def _small_shares(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block is as much as an aggregator is to have."""
    monkeypatch.setattr("worker.object_exchange.SHARE_BYTES", 64 * 4 * 3)


@pytest.fixture(params=OPTIMIZERS.values(), ids=OPTIMIZERS)
def stateful(request: pytest.FixtureRequest, plan: StepPlan) -> StepPlan:
    found = replace(plan, optimizer=request.param, network=replace(plan.network, dropout=0.2))
    assert len(parameter_layout(network_graph(found.network)).blocks) == 8
    return found


def undisturbed(plan: StepPlan) -> tuple[str, list[StepReport]]:
    with closing(InProcessExchange(plan, SEED)) as exchange:
        reports = exchange.run_steps(STEPS)
        return weights_sha256(exchange.parameters()), reports


@pytest.mark.parametrize("shares", [2, 3, 8, 11])
def test_the_bits_and_the_reports_are_those_of_one(site: Any, stateful: StepPlan, shares: int) -> None:
    place = site(stateful, 2, shares=shares)
    with closing(place.open()) as exchange, closing(InProcessExchange(stateful, SEED)) as oracle:
        reports = [report for count in (1, STEPS - 1) for report in exchange.run_steps(count)]
        assert (weights_sha256(exchange.parameters()), reports) == undisturbed(stateful)
        oracle.run_steps(STEPS)
        for split in ("validation", "test"):
            assert exchange.evaluate(split).tobytes() == oracle.evaluate(split).tobytes()
        assert exchange.diagnose() == oracle.diagnose()
    assert [each.calls.count("commit_parts") for each in place.aggregators] == [STEPS] * min(shares, 8) + [0] * (
        shares - min(shares, 8)
    )


@pytest.mark.parametrize("step", [1, 2, 7, STEPS])
@pytest.mark.parametrize("fate", ["before", "after"])
def test_a_lost_worker_changes_no_bit(site: Any, stateful: StepPlan, step: int, fate: str) -> None:
    place = site(stateful, 3, shares=3)
    place.workers[1].dies = lambda method, arguments: fate if (method, arguments[:1]) == ("gradients", (step,)) else ""
    exchange = place.open()
    reports = exchange.run_steps(STEPS)
    assert (weights_sha256(exchange.parameters()), reports) == undisturbed(stateful)
    assert exchange.failures == 1


@pytest.mark.parametrize("method", ["reduce_parts", "commit_parts"])
def test_the_loss_of_one_ends_it(site: Any, plan: StepPlan, method: str) -> None:
    place = site(plan, 2, shares=2)
    place.aggregators[1].dies = lambda called, arguments: "before" if (called, arguments[:1]) == (method, (3,)) else ""
    exchange = place.open()
    with pytest.raises(RemoteLost, match="aggregator1"):
        exchange.run_steps(STEPS)
    exchange.close()
    assert place.aggregators[0].calls[-1] == "end"


def test_aggregators_that_are_not_at_the_same_step_end_it(site: Any, plan: StepPlan) -> None:
    """One has taken a step that the other has never heard of, and a worker dies: nothing whole is left."""
    place = site(plan, 2, shares=2)
    exchange = place.open()
    call, lost = place.aggregators[1].call, []

    def loses_a_message(method: str, *arguments: Any, returns: int = 1) -> Any:
        if (method, arguments[:1]) == ("commit_parts", (4,)):
            lost.append(place.workers[0])
            place.workers[0].alive = False
            error = call("gradients", returns=1)
            error.error = RemoteLost("a message")
            return [error] * returns
        return call(method, *arguments, returns=returns)

    place.aggregators[1].call = loses_a_message
    with pytest.raises(RemoteLost, match="not at the same step"):
        exchange.run_steps(STEPS)
    assert lost


def test_what_was_saved_by_some_goes_on_with_any(site: Any, stateful: StepPlan) -> None:
    first = site(stateful, 2, shares=3).open()
    first.run_steps(5)
    first.keep_best()
    for shares in (1, 2, 8):
        exchange = site(stateful, 1, shares=shares).open()
        exchange.restore(5, first.snapshot(), first.parameters("best"))
        assert exchange.parameters("best").tobytes() == first.parameters().tobytes()
        exchange.run_steps(STEPS - 5)
        assert weights_sha256(exchange.parameters()) == undisturbed(stateful)[0]


def test_divergence_names_the_shard_whoever_has_seen_it(site: Any, plan: StepPlan) -> None:
    found = []
    for shares in (1, 4):
        with pytest.raises(Diverged) as diverged:
            site(replace(plan, optimizer=OptimizerSpec("sgd", 1e6)), 2, shares=shares).open().run_steps(40)
        found.append(str(diverged.value))
    assert found[0] == found[1]


def test_a_limit_of_units_norms_has_one_aggregator(site: Any, plan: StepPlan) -> None:
    limited = replace(plan, optimizer=OptimizerSpec("sgd", 0.05, max_norm=1.0))
    place = site(limited, 2, shares=3)
    exchange = place.open()
    exchange.run_steps(STEPS)
    assert weights_sha256(exchange.parameters()) == undisturbed(limited)[0]
    assert place.aggregators[1].calls == []


@pytest.mark.parametrize(("bytes_a_share", "used"), [(10**6, 1), (3000, 2), (1, 3)])
def test_no_more_take_part_than_it_takes(
    site: Any, plan: StepPlan, monkeypatch: pytest.MonkeyPatch, bytes_a_share: int, used: int
) -> None:
    """472 numbers, so 5,664 bytes of gradients of three shards."""
    monkeypatch.setattr("worker.object_exchange.SHARE_BYTES", bytes_a_share)
    place = site(plan, 2, shares=3)
    place.open().run_steps(1)
    assert [len(each.calls) > 0 for each in place.aggregators] == [k < used for k in range(3)]


@pytest.mark.parametrize("method", ["reduce", "commit"])
def test_only_the_next_step_is_accepted(plan: StepPlan, method: str) -> None:
    aggregator = ParameterAggregator()
    gradients = [np.zeros_like(aggregator.begin(plan, SEED, 1, 4))] * plan.shards
    reports = [ShardReport(2, shard, 1, 1.0, 1.0) for shard in range(plan.shards)]
    calls: dict[str, Callable[[], Any]] = {
        "reduce": lambda: aggregator.reduce(2, gradients, reports),
        "commit": lambda: aggregator.commit(2, [Reduced((0.0,))], reports),
    }
    with pytest.raises(StepRefused):
        calls[method]()
