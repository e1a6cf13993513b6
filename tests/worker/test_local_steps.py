"""Rounds of local steps: what they come to, by a plain program, and the same bits from every exchange and any fault."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from benchmarks.processes import Processes
from core.draw import Draw
from core.network import Network, initial_parameters
from core.optimizers import OptimizerSpec
from core.parameters import weights_sha256
from core.schedules import ScheduleSpec, learning_rate
from worker import futex
from worker.crew import Crew
from worker.dataset import PreparedDataset
from worker.diagnosis import Observer
from worker.errors import Diverged
from worker.exchange import InProcessExchange
from worker.gradient_worker import GradientWorker
from worker.local_steps import OUTER, in_rounds
from worker.plan import MetricPoint, ShardReport, StepPlan, StepReport, TrainingPlan
from worker.recorder import Recorder
from worker.shared_memory import SharedMemoryExchange
from worker.trainer import Trainer

SEED, STEPS, LOCAL_STEPS = 5, 12, 4
MOMENTUM = OptimizerSpec("sgd", 0.05, momentum=0.9)
MakeStepPlan = Callable[..., tuple[StepPlan, PreparedDataset]]
needs_futex = pytest.mark.skipif(not futex.SUPPORTED, reason="words in shared memory need x86-64 Linux (worker.futex)")


def local(plan: StepPlan, outer: str = "average", steps: int = LOCAL_STEPS, **network: Any) -> StepPlan:
    """Rounds of `plan`'s steps, its network changed."""
    sampling = replace(plan.sampling, local_steps=steps)
    epochs = plan.steps // plan.sampling.steps_per_epoch
    plan = replace(plan, sampling=sampling, network=replace(plan.network, **network))
    return in_rounds(replace(plan, steps=epochs * sampling.steps_per_epoch), outer)


@pytest.fixture
def small(make_step_plan: MakeStepPlan) -> StepPlan:
    """Weighted rows; 18 minibatches an epoch, the last one partial: four full rounds and one of two steps."""
    found = make_step_plan(data={"weight_column": "weight"}, batch_size=8, optimizer=MOMENTUM)[0]
    assert (found.sampling.minibatches, found.sampling.rows % 8 > 0) == (18, True)
    return found


def outcome(plan: StepPlan, steps: int = STEPS) -> tuple[str, list[StepReport]]:
    with closing(InProcessExchange(plan, SEED)) as exchange:
        reports = exchange.run_steps(steps)
        return weights_sha256(exchange.parameters()), reports


# What a round is.


def by_hand(plan: StepPlan, prepared: PreparedDataset, outer: str, rounds: int) -> tuple[np.ndarray, list[float]]:
    """Parameters and losses after `rounds`, by SGD with momentum as the textbook has it."""
    assert plan.local is not None
    sampling, inner, dtype = plan.sampling, plan.local.optimizer, np.float64
    features, targets, weights = prepared.arrays("train")
    network, start = Network(plan.network, 64), initial_parameters(plan.network, SEED)
    outer_velocity, taken, losses = np.zeros_like(start), 0, []
    for number in range(1, rounds + 1):
        differences, shard_weights, loss = [], [], 0.0
        place = (number - 1) % sampling.steps_per_epoch
        minibatches = range(place * LOCAL_STEPS, min((place + 1) * LOCAL_STEPS, sampling.minibatches))
        for shard in range(plan.shards):
            order, w, velocity, weight = sampling.order(sampling.epoch_of(number), shard), start.copy(), 0.0, 0.0
            part = -(-(8 - shard) // plan.shards)  # of 8 rows: the first shards take one more
            for step, minibatch in enumerate(minibatches, taken + 1):
                rows = order[minibatch * part : (minibatch + 1) * part]
                if len(rows) == 0:
                    continue
                x, r = features[rows].astype(dtype), weights[rows].astype(dtype)
                gradient = np.empty_like(w)
                level = learning_rate(plan.local.schedule, 1.0, step, plan.local.steps)
                draw = Draw(sampling.seed, step, shard, level)
                loss += network.loss_and_gradient(w, gradient, x, targets[rows], r, draw)
                velocity = inner.momentum * velocity + gradient / r.sum()
                w -= inner.learning_rate * level * velocity
                weight += r.sum()
            differences.append(start - w)
            shard_weights.append(weight)
        taken += len(minibatches)
        mean = np.average(differences, axis=0, weights=shard_weights)
        losses.append(loss / sum(shard_weights))
        if outer == "average":
            start = start - mean
        else:
            outer_velocity = 0.9 * outer_velocity + mean
            start = start - 0.7 * (mean + 0.9 * outer_velocity)
    return start, losses


@pytest.mark.parametrize(("outer", "shards"), [*product(OUTER, [1, 3, 8])])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_a_round_is_what_a_plain_program_makes_of_it(
    make_step_plan: MakeStepPlan, outer: str, shards: int, momentum: float
) -> None:
    """Over two epochs and more: short rounds, partial minibatches, shards without rows, dropout, noise, a schedule."""
    data, schedule = {"weight_column": "weight"}, ScheduleSpec("cosine", 0.1)
    given, prepared = make_step_plan(
        dtype="float64",
        data=data,
        batch_size=8,
        optimizer=replace(MOMENTUM, momentum=momentum),
        shards=shards,
        schedule=schedule,
    )
    plan = local(given, outer, dropout=0.3, input_noise=0.2)
    with closing(InProcessExchange(plan, SEED)) as exchange:
        reports = exchange.run_steps(STEPS)
        parameters, losses = by_hand(plan, prepared, outer, STEPS)
        assert [report.loss for report in reports] == pytest.approx(losses, rel=1e-9)
        np.testing.assert_allclose(exchange.parameters(), parameters, rtol=1e-9, atol=1e-12)
    assert [report.rows for report in reports[:5]] == [32, 32, 32, 32, plan.sampling.rows - 128]


def test_one_local_step_of_plain_sgd_is_a_synchronous_step(make_step_plan: MakeStepPlan) -> None:
    plan, _ = make_step_plan(dtype="float64", optimizer=OptimizerSpec("sgd", 0.1), data={"weight_column": "weight"})
    with closing(InProcessExchange(plan, SEED)) as sync, closing(InProcessExchange(local(plan, steps=1), SEED)) as once:
        reports = sync.run_steps(STEPS), once.run_steps(STEPS)
        np.testing.assert_allclose(once.parameters(), sync.parameters(), rtol=1e-11, atol=1e-14)
    assert [r.loss for r in reports[0]] == pytest.approx([r.loss for r in reports[1]], rel=1e-11)


def test_everything_that_a_local_step_is_decides_the_weights(small: StepPlan) -> None:
    """None of these is accepted and ignored."""
    changes: list[dict[str, Any]] = [
        {},
        {"momentum": 0.0},
        {"nesterov": True},
        {"clip_norm": 0.01},
        {"max_norm": 0.3},
        {"l1": 0.01},
        {"weight_decay": 0.1},
        *({"name": name, "momentum": 0.0} for name in ("adam", "rmsprop", "adagrad")),
        {"name": "adamw", "momentum": 0.0, "weight_decay": 0.1},
    ]
    plans = [local(replace(small, optimizer=replace(small.optimizer, **change))) for change in changes]
    plans += [local(small, "nesterov"), local(small, steps=3), local(replace(small, schedule=ScheduleSpec("step")))]
    assert len({outcome(plan)[0] for plan in plans}) == len(plans)


def test_clipping_and_max_norm_bound_what_they_say(small: StepPlan) -> None:
    """After one local step: a step as long as the clipped gradient, and no column longer than max_norm."""
    rate, norm = 0.5, 0.01
    plan = local(replace(small, optimizer=OptimizerSpec("sgd", rate, clip_norm=norm), schedule=ScheduleSpec()), steps=1)
    worker, start = GradientWorker(), initial_parameters(plan.network, SEED)
    worker.attach(plan)
    slot = np.empty_like(start)
    report = worker.gradient(1, 0, start, slot)
    assert np.linalg.norm(slot) == pytest.approx(report.weight_sum * rate * norm, rel=1e-4)

    plan = local(replace(small, optimizer=OptimizerSpec("sgd", rate, max_norm=0.3), schedule=ScheduleSpec()), steps=2)
    worker.attach(plan)
    report = worker.gradient(1, 0, start, slot)
    after = Network(plan.network, 1).layout.views(start - slot / np.float32(report.weight_sum))
    columns = np.concatenate([np.linalg.norm(v, axis=0) for v in after.values() if v.ndim == 2])
    assert 0.299 < columns.max() < 0.301


# The same bits.


@pytest.mark.parametrize(
    "optimizer",
    [MOMENTUM, replace(MOMENTUM, clip_norm=0.1, max_norm=1.0), OptimizerSpec("adamw", 1e-3, weight_decay=0.01)],
    ids=["momentum", "clipped", "adamw"],
)
@pytest.mark.parametrize("outer", OUTER)
def test_objects_give_the_bits_of_one_process(small: StepPlan, site: Any, outer: str, optimizer: OptimizerSpec) -> None:
    plan = local(replace(small, optimizer=optimizer), outer, dropout=0.2)
    wanted = outcome(plan)
    for workers in (1, 2, 3, 5):
        with closing(site(plan, workers).open()) as exchange:
            reports = exchange.run_steps(5) + exchange.run_steps(STEPS - 5)
            assert (weights_sha256(exchange.parameters()), reports) == wanted


@pytest.mark.parametrize("fate", ["before", "after"])
def test_a_worker_that_dies_in_a_round_changes_nothing(small: StepPlan, site: Any, fate: str) -> None:
    plan = local(small, "nesterov")
    found = site(plan, 3)
    found.workers[1].dies = lambda method, arguments: fate if arguments[:1] == (7,) else ""
    with closing(found.open()) as exchange:
        reports = exchange.run_steps(STEPS)
        assert exchange.failures == 1
        assert (weights_sha256(exchange.parameters()), reports) == outcome(plan)


@pytest.fixture
def open_shared() -> Iterator[Callable[..., tuple[SharedMemoryExchange, Crew]]]:
    with ExitStack() as stack:

        def opened(
            plan: StepPlan, workers: int, kind: type = GradientWorker, claiming: bool = True
        ) -> tuple[SharedMemoryExchange, Crew]:
            transport = stack.enter_context(closing(Processes()))
            recruits = [transport.recruit(kind)] + [transport.recruit() for _ in range(workers - 1)]
            crew = Crew(plan, recruits, transport, lambda event: None)
            crew.admit(wait=True)
            exchange = SharedMemoryExchange(plan, SEED, crew, transport, claiming=claiming)
            return stack.enter_context(closing(exchange)), crew

        yield opened


@needs_futex
@pytest.mark.parametrize("outer", OUTER)
def test_shared_memory_gives_the_bits_of_one_process(small: StepPlan, open_shared: Any, outer: str) -> None:
    plan = local(replace(small, optimizer=replace(MOMENTUM, max_norm=1.0)), outer, dropout=0.2)
    wanted = outcome(plan)
    for workers in (1, 2, 3):  # claiming shards, and one each
        exchange, _ = open_shared(plan, workers)
        reports = exchange.run_steps(5) + exchange.run_steps(STEPS - 5)
        assert (weights_sha256(exchange.parameters()), reports) == wanted


class DiesInARound(GradientWorker):
    """Its process is killed within a round, between two local steps."""

    def gradient(self, step: int, shard: int, parameters: np.ndarray, gradient: np.ndarray) -> ShardReport:
        if step == 7:
            assert self._local is not None
            goes_on = self._local._step

            def step_or_die(number: int, *rest: Any) -> np.ndarray:
                if number == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                return goes_on(number, *rest)

            self._local._step = step_or_die  # type: ignore[method-assign]
        return super().gradient(step, shard, parameters, gradient)


@needs_futex
def test_a_process_that_is_killed_between_local_steps_changes_nothing(small: StepPlan, open_shared: Any) -> None:
    plan = local(small, "nesterov")
    exchange, crew = open_shared(plan, 2, DiesInARound, claiming=False)  # it has shards in every round
    reports = exchange.run_steps(STEPS)
    assert crew.failures == 1
    assert (weights_sha256(exchange.parameters()), reports) == outcome(plan)


@pytest.mark.parametrize("outer", OUTER)
def test_what_goes_on_from_a_snapshot_ends_the_same(small: StepPlan, outer: str) -> None:
    """It holds the outer momentum; the local steps' begins each round at zero."""
    plan = local(small, outer)
    with closing(InProcessExchange(plan, SEED)) as first, closing(InProcessExchange(plan, SEED + 1)) as second:
        first.run_steps(7)
        state = first.snapshot()
        assert len(state) == (2 if outer == "nesterov" else 1)
        second.restore(7, state, None)
        second.run_steps(STEPS - 7)
        assert weights_sha256(second.parameters()) == outcome(plan)[0]


# Around it.


def test_divergence_names_round_and_shard(small: StepPlan, site: Any) -> None:
    for change in ({"learning_rate": 1e30}, {"learning_rate": 1e30, "clip_norm": 1e30}):
        plan = local(replace(small, optimizer=replace(small.optimizer, **change)))
        found = []
        for opened in (InProcessExchange(plan, SEED), site(plan, 2).open()):
            with closing(opened) as exchange, pytest.raises(Diverged) as diverged:
                exchange.run_steps(STEPS)
            found.append((diverged.value.step, diverged.value.shard, diverged.value.what))
        assert found[0] == found[1]
        assert found[0][:2] == (1, 0)


def test_a_look_inside_is_at_the_rounds_first_minibatch(small: StepPlan) -> None:
    once, plan = local(small, steps=1), local(small)
    start, (number, step) = initial_parameters(plan.network, SEED), (9, 3)  # the round's first minibatch is the ninth
    found = []
    for each, at in ((once, number), (plan, step)):
        with closing(Observer(each)) as observer:
            found.append(observer.diagnose(at, start, start * 1.5))
    assert repr(found[0]) == repr(found[1])


def test_a_training_counts_rounds_and_tells_the_local_learning_rate(make_plan: Callable[..., TrainingPlan]) -> None:
    plan = make_plan(batch_size=8, optimizer=MOMENTUM, local_steps=LOCAL_STEPS, epochs=4)
    recorder = Recorder(workers=1)
    result = Trainer(plan, recorder, InProcessExchange).run()
    assert result.steps == 4 * 5
    assert result.metrics["validation_accuracy"] > 0.6
    _, _, _, updates = recorder.read(0)
    points = [point for point in updates if isinstance(point, MetricPoint)]
    assert [p.step for p in points if p.series == "train_loss"] == list(range(1, 21))
    first_local_step = [1 + 18 * epoch + 4 * number for epoch in range(4) for number in range(5)]
    wanted = [learning_rate(plan.schedule, 0.05, step, 4 * 18) for step in first_local_step]
    assert [p.value for p in points if p.series == "learning_rate"] == wanted
    assert any(p.series.startswith("diagnostics/") for p in points)
