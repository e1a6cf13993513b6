"""The aggregator: a step is applied once, whole, from finite numbers, or not at all."""

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from core.network import NetworkSpec, initial_parameters, network_graph, parameter_layout
from core.optimizers import OptimizerSpec
from core.parameters import BLOCK
from core.schedules import ScheduleSpec
from worker.aggregator import REPORTS_KEPT, ParameterAggregator
from worker.errors import Diverged, StepRefused
from worker.plan import ShardReport, StepPlan
from worker.sampling import Sampling

NETWORK = NetworkSpec(300, 2, (250,))
SGD = OptimizerSpec("sgd", 0.5)
ADAMW = OptimizerSpec("adamw", 0.01, weight_decay=0.1, clip_norm=1.0)
PLAN = StepPlan("", NETWORK, Sampling(100, 10, 3, 0), SGD, ScheduleSpec(), 40, threads_per_worker=1)
SIZE = initial_parameters(NETWORK, 0).size
assert SIZE > BLOCK  # more than one block


def begun(plan: StepPlan = PLAN, seed: int = 5) -> ParameterAggregator:
    aggregator = ParameterAggregator()
    aggregator.begin(plan, seed)
    return aggregator


def slots(step: int, shards: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(step)
    return [rng.normal(size=SIZE).astype(np.float32) for _ in range(shards)]


def reports(step: int, weights: tuple[float, ...] = (4.0, 3.0, 3.0), loss: float = 6.0) -> list[ShardReport]:
    return [ShardReport(step, shard, math.ceil(weight), weight, loss) for shard, weight in enumerate(weights)]


def test_it_begins_with_the_seeds_parameters() -> None:
    aggregator = ParameterAggregator()
    found = aggregator.begin(PLAN, 5)
    wanted = initial_parameters(NETWORK, 5)
    for parameters in (found, aggregator.parameters(), aggregator.parameters("best")):
        assert parameters.tobytes() == wanted.tobytes()
    assert aggregator.committed == 0


def test_a_step_goes_along_the_mean_gradient_by_weight_and_not_by_row() -> None:
    aggregator, gradients = begun(), slots(1)
    before = aggregator.parameters().astype(np.float64)
    report = aggregator.apply(1, gradients, reports(1, weights=(0.5, 2.0, 0.0), loss=6.0))
    wanted = before - 0.5 * sum(g.astype(np.float64) for g in gradients) / 2.5
    np.testing.assert_allclose(aggregator.parameters(), wanted, rtol=0, atol=1e-5)
    assert (report.step, report.rows, report.weight_sum, report.learning_rate) == (1, 3, 2.5, 0.5)
    assert report.loss == 18.0 / 2.5
    assert report.gradient_norm == pytest.approx(np.linalg.norm(sum(gradients) / 2.5), rel=1e-5)


def test_a_step_without_any_weight_changes_nothing() -> None:
    aggregator = begun()
    before = aggregator.parameters().tobytes()
    report = aggregator.apply(1, [np.zeros(SIZE, np.float32)] * 3, reports(1, weights=(0.0, 0.0, 0.0), loss=0.0))
    assert (report.loss, report.gradient_norm, report.weight_sum) == (0.0, 0.0, 0.0)
    assert aggregator.parameters().tobytes() == before


def test_the_committed_parameters_stay_whole_while_the_next_are_made() -> None:
    aggregator = begun(replace(PLAN, optimizer=ADAMW))
    committed = aggregator.parameters()
    before = committed.tobytes()
    gradients = slots(1)
    kept = [gradient.copy() for gradient in gradients]
    aggregator.apply(1, gradients, reports(1))
    assert committed.tobytes() == before
    assert aggregator.parameters().tobytes() != before
    assert all(one.tobytes() == other.tobytes() for one, other in zip(gradients, kept, strict=True))


@pytest.mark.parametrize("optimizer", [SGD, replace(ADAMW, clip_norm=None)])
def test_the_next_parameters_are_there_before_the_commit_if_they_take_nothing_of_other_shares(
    optimizer: OptimizerSpec,
) -> None:
    plan = replace(PLAN, optimizer=optimizer)
    aggregator, whole = begun(plan), begun(plan)
    for step in (1, 2):
        before = aggregator.parameters().tobytes()
        aggregator.reduce(step, slots(step + 7), reports(step))
        assert aggregator.update(step)  # of gradients that are lost with their worker
        reduced = aggregator.reduce(step, slots(step), reports(step))
        assert aggregator.update(step)
        assert (aggregator.committed, aggregator.parameters().tobytes()) == (step - 1, before)
        report = whole.apply(step, slots(step), reports(step))
        assert aggregator.parameters("next").tobytes() == whole.parameters().tobytes()
        assert aggregator.commit(step, [reduced], reports(step)) == report
        assert aggregator.state().tobytes() == whole.state().tobytes()


def test_clipped_ones_take_the_norm_of_all_shares() -> None:
    aggregator = begun(replace(PLAN, optimizer=replace(SGD, clip_norm=0.25)))
    aggregator.reduce(1, slots(1), reports(1))
    assert not aggregator.update(1)


@pytest.mark.parametrize("step", [0, 1, 2, 4])
def test_only_the_next_step_is_accepted(step: int) -> None:
    aggregator = begun()
    for done in (1, 2):
        aggregator.apply(done, slots(done), reports(done))
    before = aggregator.parameters().tobytes()
    with pytest.raises(StepRefused):
        aggregator.update(step)
    with pytest.raises(StepRefused) as refused:
        aggregator.apply(step, slots(step), reports(step))
    assert (refused.value.step, refused.value.committed) == (step, 2)
    assert (aggregator.committed, aggregator.parameters().tobytes()) == (2, before)


def diverging(what: str) -> tuple[list[np.ndarray], list[ShardReport]]:
    gradients, parts = slots(3), reports(3)
    if what == "loss":
        parts[1] = replace(parts[1], loss_sum=math.nan)
    elif what == "gradient":
        gradients[1][BLOCK + 9] = -math.inf
    elif what == "weights":
        gradients[0][BLOCK + 9] = 1e19
    elif what == "huge":
        gradients[2][7] = 3e38  # finite, but its square is not
    else:
        for gradient in gradients:
            gradient[7] = 1.2e19  # each has a norm, the sum has not
        parts = reports(3, weights=(0.5, 0.25, 0.25))
    return gradients, parts


# A rate at which a finite gradient can lead to an infinite weight.
STEEP = OptimizerSpec("sgd", 1e21, momentum=0.9)


@pytest.mark.parametrize(
    ("optimizer", "what", "shard", "named"),
    [
        (ADAMW, "loss", 1, "loss"),
        (ADAMW, "gradient", 1, "gradient"),
        (ADAMW, "huge", 2, "gradient"),
        (ADAMW, "mean", None, "gradient"),
        (SGD, "gradient", 1, "gradient"),
        (STEEP, "weights", None, "weight vector"),
    ],
)
@pytest.mark.parametrize("early", [False, True])
def test_divergence_names_step_and_shard_and_commits_nothing(
    optimizer: OptimizerSpec, what: str, shard: int | None, named: str, early: bool
) -> None:
    plan = replace(PLAN, optimizer=optimizer)
    aggregator, undisturbed = begun(plan), begun(plan)
    for each in (aggregator, undisturbed):
        for step in (1, 2):
            each.apply(step, slots(step), reports(step))
    gradients, parts = diverging(what)
    reduced = aggregator.reduce(3, gradients, parts)
    if early:
        assert aggregator.update(3) == (optimizer.clip_norm is None)
    with pytest.raises(Diverged) as diverged:
        aggregator.commit(3, [reduced], parts)
    assert (diverged.value.step, diverged.value.shard, diverged.value.what) == (3, shard, named)
    assert aggregator.committed == 2
    assert [report.step for report in aggregator.reports_after(0)] == [1, 2]
    for step in (3, 4):  # parameters and optimizer state go on as if nothing had been
        for each in (aggregator, undisturbed):
            each.apply(step, slots(step), reports(step))
    assert aggregator.parameters().tobytes() == undisturbed.parameters().tobytes()


def test_max_norm_holds_for_every_unit_of_a_committed_step() -> None:
    """A unit's weights lie across blocks: the limit is applied to the whole vector."""
    free, limited = begun(), begun(replace(PLAN, optimizer=replace(SGD, max_norm=0.9)))
    for aggregator in (free, limited):
        aggregator.apply(1, slots(1), reports(1))
    layout = parameter_layout(network_graph(NETWORK))
    longer, found = layout.views(free.parameters()), layout.views(limited.parameters())
    for name in ("layer1.weights", "layer2.weights"):
        norms = np.linalg.norm(longer[name], axis=0)
        assert (norms > 0.9).any()
        np.testing.assert_allclose(found[name], longer[name] * np.minimum(0.9 / norms, 1), rtol=1e-4)
    np.testing.assert_array_equal(found["layer1.bias"], longer["layer1.bias"])


@pytest.mark.parametrize("clip_norm", [0.25, 1e6, None])
def test_clipping_is_by_the_global_norm_and_the_report_tells_the_norm_before(clip_norm: float | None) -> None:
    aggregator = begun(replace(PLAN, optimizer=replace(SGD, clip_norm=clip_norm)))
    before = aggregator.parameters().astype(np.float64)
    report = aggregator.apply(1, slots(1), reports(1))
    moved = np.linalg.norm(aggregator.parameters() - before) / report.learning_rate
    assert report.gradient_norm == pytest.approx(np.linalg.norm(sum(slots(1)) / 10), rel=1e-5)
    assert moved == pytest.approx(0.25 if clip_norm == 0.25 else report.gradient_norm, rel=1e-4)


def test_the_schedule_spans_the_plans_steps() -> None:
    plan = replace(PLAN, schedule=ScheduleSpec("cosine", warmup=0.5), steps=4)
    aggregator = begun(plan)
    rates = [aggregator.apply(step, slots(step), reports(step)).learning_rate for step in (1, 2, 3, 4)]
    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.25])


def test_messages_may_carry_the_workers_reports_in_any_order() -> None:
    one, other = begun(), begun()
    parts = [replace(part, loss_sum=loss) for part, loss in zip(reports(1), (1e16, 1.0, 1.0), strict=True)]
    report = one.apply(1, slots(1), parts)  # its loss depends on the order
    parameters, found = other.apply_parts(1, *slots(1), (parts[1], parts[2]), (parts[0],))
    assert found == report
    assert parameters.tobytes() == one.parameters().tobytes()
    assert pickle.loads(pickle.dumps(parameters)).tobytes() == parameters.tobytes()


def test_missed_reports_can_be_had_again() -> None:
    aggregator, said = begun(), []
    for step in range(1, REPORTS_KEPT + 3):
        said.append(aggregator.apply(step, slots(step), reports(step)))
    assert aggregator.reports_after(REPORTS_KEPT) == said[-2:]
    assert aggregator.reports_after(REPORTS_KEPT + 2) == []


def test_the_best_parameters_are_kept_until_better_ones_are() -> None:
    aggregator = begun()
    aggregator.apply(1, slots(1), reports(1))
    aggregator.keep_best()
    best = aggregator.parameters().tobytes()
    for step in (2, 3):
        aggregator.apply(step, slots(step), reports(step))
    assert aggregator.parameters("best").tobytes() == best
    assert aggregator.parameters("current").tobytes() != best


def test_the_next_job_finds_nothing_of_the_last() -> None:
    aggregator = begun(replace(PLAN, optimizer=ADAMW))
    for step in (1, 2):
        aggregator.apply(step, slots(step), reports(step))
    aggregator.end()
    assert vars(aggregator) == {"committed": 0, "_seat": None}
    small = replace(PLAN, network=NetworkSpec(4, 2, ()), optimizer=ADAMW)
    parameters = aggregator.begin(small, 1)
    assert parameters.tobytes() == initial_parameters(small.network, 1).tobytes()
    assert (aggregator.committed, aggregator.reports_after(0)) == (0, [])


def test_it_computes_with_the_plans_threads() -> None:
    with threadpool_limits(1, user_api="blas"):
        begun(replace(PLAN, threads_per_worker=2))
        assert {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"} == {2}
