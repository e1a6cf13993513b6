"""Shards' gradients: of the right rows, adding up to the batch's, the same whoever computes them and when."""

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from core.metrics import metrics
from core.network import Network, initial_parameters
from worker.dataset import PreparedDataset
from worker.gradient_seat import GradientSeat
from worker.gradient_worker import GradientWorker, in_range
from worker.numerics import fingerprint, machine
from worker.plan import Attached, StepPlan

MakeStepPlan = Callable[..., tuple[StepPlan, PreparedDataset]]
WEIGHTED = {"weight_column": "weight"}


def attached(plan: StepPlan) -> GradientWorker:
    worker = GradientWorker()
    worker.attach(plan)
    return worker


def batch(plan: StepPlan, prepared: PreparedDataset, step: int) -> tuple[np.ndarray, ...]:
    """Features, targets and weights of all rows of `step`, in the network's dtype."""
    sampling = plan.sampling
    orders = [sampling.order(sampling.epoch_of(step), k)[sampling.part(step, k)] for k in range(plan.shards)]
    rows = np.concatenate(orders)
    features, targets, weights = prepared.arrays("train")
    dtype = plan.network.dtype
    y = targets[rows] if targets.dtype == np.int32 else targets[rows].astype(dtype)
    w = np.ones(len(rows), dtype) if weights is None else weights[rows].astype(dtype)
    return features[rows].astype(dtype), y, w


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
@pytest.mark.parametrize("table", ["classes", "values"])
def test_the_engines_gradients_of_the_parts_add_up(make_step_plan: MakeStepPlan, table: str, shards: int) -> None:
    plan, prepared = make_step_plan(table, dtype="float64", shards=shards)
    x, y, w = batch(plan, prepared, 1)
    network, parameters = Network(plan.network, len(x)), initial_parameters(plan.network, 3)
    whole, part, total = (np.zeros_like(parameters) for _ in range(3))
    loss = network.loss_and_gradient(parameters, whole, x, y, w)
    losses = 0.0
    for rows in np.array_split(np.arange(len(x)), shards):
        losses += network.loss_and_gradient(parameters, part, x[rows], y[rows], w[rows])
        total += part
    assert losses == pytest.approx(loss, rel=1e-13)
    assert np.abs(total - whole).max() <= 1e-12 * np.abs(whole).max()


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
@pytest.mark.parametrize(("table", "data"), [("classes", {}), ("classes", WEIGHTED), ("values", WEIGHTED)])
def test_the_shards_gradients_add_up_to_the_batchs(
    make_step_plan: MakeStepPlan, table: str, data: dict[str, str], shards: int
) -> None:
    plan, prepared = make_step_plan(table, dtype="float64", shards=shards, data=data)
    worker, parameters = attached(plan), initial_parameters(plan.network, 3)
    per_epoch = plan.sampling.steps_per_epoch
    for step in (1, per_epoch, per_epoch + 2):  # a full one, a partial one, one of the next epoch
        x, y, w = batch(plan, prepared, step)
        whole = np.empty_like(parameters)
        loss = Network(plan.network, len(x)).loss_and_gradient(parameters, whole, x, y, w)
        *gradients, reports = worker.gradients(step, tuple(range(shards)), parameters)
        assert np.abs(sum(gradients) - whole).max() <= 1e-12 * np.abs(whole).max()
        assert sum(report.loss_sum for report in reports) == pytest.approx(loss, rel=1e-13)
        assert sum(report.rows for report in reports) == len(x)
        assert sum(report.weight_sum for report in reports) == pytest.approx(w.sum(), rel=1e-13)
        assert [(report.step, report.shard) for report in reports] == [(step, shard) for shard in range(shards)]


def test_who_computes_a_shard_and_when_does_not_matter(make_step_plan: MakeStepPlan) -> None:
    plan, _ = make_step_plan(data=WEIGHTED, shards=3)
    parameters = initial_parameters(plan.network, 3)
    steps = range(1, plan.sampling.steps_per_epoch + 3)
    one, found = attached(plan), {}
    for step in steps:
        *gradients, _ = one.gradients(step, (0, 1, 2), parameters)
        found |= {(step, shard): gradient.tobytes() for shard, gradient in enumerate(gradients)}
    for step in reversed(steps):  # others, backwards, one shard at a time
        for shard in (2, 0, 1):
            gradient = np.full_like(parameters, np.nan)
            attached(plan).gradient(step, shard, parameters, gradient)
            assert gradient.tobytes() == found[step, shard]


def test_a_shard_without_rows_gives_zeros(make_step_plan: MakeStepPlan) -> None:
    plan, _ = make_step_plan(shards=7, batch_size=5)
    worker, parameters = attached(plan), initial_parameters(plan.network, 3)
    gradient = np.full_like(parameters, np.nan)
    report = worker.gradient(1, 6, parameters, gradient)
    assert (report.rows, report.weight_sum, report.loss_sum) == (0, 0.0, 0.0)
    assert not gradient.any()


@pytest.mark.parametrize(("table", "data"), [("classes", {}), ("classes", WEIGHTED), ("values", WEIGHTED)])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_metric_sums_of_the_shards_are_those_of_the_split(
    make_step_plan: MakeStepPlan, table: str, data: dict[str, str], split: str
) -> None:
    plan, prepared = make_step_plan(table, dtype="float64", data=data)
    worker, parameters = attached(plan), initial_parameters(plan.network, 3)
    features, targets, weights = prepared.arrays(split)
    y = targets if targets.dtype == np.int32 else targets.astype(np.float64)
    w = None if weights is None else weights.astype(np.float64)
    whole = Network(plan.network, len(features)).evaluate(parameters, features.astype(np.float64), y, w)
    parts = worker.evaluations(split, (0, 1, 2), parameters)
    assert all(part.any() for part in parts)
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-12)
    assert np.isfinite(list(metrics(plan.network.loss, sum(parts)).values())).all()


def test_half_gradients_are_those_that_float16_has(make_step_plan: MakeStepPlan) -> None:
    plan, _ = make_step_plan()
    parameters = initial_parameters(plan.network, 3)
    full, half = np.empty_like(parameters), np.empty_like(parameters)
    report = attached(plan).gradient(4, 1, parameters, full)
    worker = attached(replace(plan, half_gradients=True))
    assert worker.gradient(4, 1, parameters, half) == report
    np.testing.assert_array_equal(half, full.astype(np.float16))
    assert (half != full).any()
    worker.gradient(4, 1, parameters * np.float32(1e6), half)
    assert not np.isfinite(half).all()  # beyond 65,504: no step is committed from it


@pytest.mark.parametrize("threads", [1, 2])
def test_attaching_holds_the_process_to_the_plans_threads(make_step_plan: MakeStepPlan, threads: int) -> None:
    plan, _ = make_step_plan(threads_per_worker=threads)
    with threadpool_limits(3 - threads, user_api="blas"):
        attached(plan)
        assert {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"} == {threads}


def test_attaching_forgets_a_job_that_nobody_ended(make_step_plan: MakeStepPlan) -> None:
    """Its trainer was lost."""
    worker = GradientWorker()
    found = []
    for seed in (0, 1):
        plan, _ = make_step_plan(seed=seed)
        parameters = initial_parameters(plan.network, 3)
        worker.attach(plan)
        found.append(worker.gradients(1, (1,), parameters)[0].tobytes())
        assert found[-1] == attached(plan).gradients(1, (1,), parameters)[0].tobytes()
    assert found[0] != found[1]


def test_a_worker_goes_from_job_to_job(make_step_plan: MakeStepPlan) -> None:
    worker = GradientWorker()
    for table, dtype in (("classes", "float32"), ("values", "float64"), ("classes", "float32")):
        plan, _ = make_step_plan(table, dtype=dtype)
        parameters = initial_parameters(plan.network, 3)
        assert worker.attach(plan) == Attached(fingerprint(), machine(), os.getpid())
        *gradients, _ = worker.gradients(2, (0, 2), parameters)
        *fresh, _ = attached(plan).gradients(2, (0, 2), parameters)
        assert [g.tobytes() for g in gradients] == [g.tobytes() for g in fresh]
        worker.detach()
        assert vars(worker) == vars(GradientWorker())


def test_a_worker_is_nobodys_though_its_memory_was_not_given_back(
    plan: StepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(seat: GradientSeat) -> None:
        raise OSError("the test's")

    worker = GradientWorker()
    worker.hold("a")
    worker.attach(plan)
    monkeypatch.setattr(GradientSeat, "close", broken)
    with pytest.raises(OSError, match="the test's"):
        worker.detach()
    assert vars(worker) == vars(GradientWorker())


def test_a_worker_is_one_holders_until_it_detaches() -> None:
    worker = GradientWorker()
    assert worker.hold("a")
    assert not worker.hold("b")
    assert not worker.hold("a")
    assert worker.holder == "a"
    worker.detach()
    assert worker.hold("b")
    assert not GradientWorker("a").hold("b")


@pytest.mark.parametrize("unit", [1.7e18, 1e-22])
def test_weights_in_any_unit_weigh_alike(unit: float) -> None:
    """In one in which squares of gradients are numbers; as they are, where they are."""
    weights = np.array([0.25, 1.0, 0.5, 0.0], np.float32)
    assert in_range(weights) is weights
    found = in_range(np.float32(unit) * weights)
    assert 0.5 <= found.max() < 1.0
    assert found.dtype == weights.dtype
    np.testing.assert_array_equal(found / found[1], weights)


def test_no_weight_at_all_is_in_range() -> None:
    assert in_range(np.zeros(3)).tolist() == [0.0, 0.0, 0.0]
