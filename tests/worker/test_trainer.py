"""Whole trainings in this process: what they keep, say and end with."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.model_file import load_model
from core.network import Network
from core.optimizers import OptimizerSpec
from core.parameters import weights_sha256
from core.schedules import ScheduleSpec
from worker.dataset import prepare
from worker.errors import Cancelled, Diverged, Orphaned
from worker.exchange import InProcessExchange
from worker.plan import EarlyStopping, MetricPoint, StepPlan, StepReport, TrainingPlan, TrainingResult
from worker.recorder import Recorder
from worker.trainer import Trainer

MakePlan = Callable[..., TrainingPlan]
STEPS_PER_EPOCH = 5  # 142 training rows in batches of 32


class Watched(InProcessExchange):
    """Remembers what it did; `after` is called with each step's report."""

    def __init__(self, plan: StepPlan, seed: int, after: Callable[[StepReport], None]) -> None:
        super().__init__(plan, seed)
        self.seeds = (seed, plan.sampling.seed)
        self.after = after
        self.reports: list[StepReport] = []
        self.at_epochs_end: dict[int, str] = {}  # step: the weights' hash
        self.closed = 0

    def run_steps(self, count: int) -> list[StepReport]:
        reports = super().run_steps(count)
        for report in reports:
            self.after(report)
        self.reports += reports
        return reports

    def evaluate(self, split: str, which: str = "current") -> np.ndarray:
        if (split, which) == ("validation", "current"):
            self.at_epochs_end[self.reports[-1].step] = weights_sha256(self.parameters())
        return super().evaluate(split, which)

    def close(self) -> None:
        super().close()
        self.closed += 1


@dataclass
class Training:
    """A trainer with all that a test looks at."""

    plan: TrainingPlan
    after: Callable[[StepReport], None] = lambda report: None
    orphan_seconds: float | None = None
    clock: Callable[[], float] = time.monotonic
    kind: type[Watched] = Watched
    opened: list[Watched] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.recorder = Recorder(workers=1)
        self.trainer = Trainer(self.plan, self.recorder, self.open, self.orphan_seconds, self.clock)

    def open(self, plan: StepPlan, seed: int) -> Watched:
        self.opened.append(self.kind(plan, seed, self.after))
        return self.opened[-1]

    def run(self) -> TrainingResult:
        result = self.trainer.run()
        assert self.exchange.closed == 1
        return result

    @property
    def exchange(self) -> Watched:
        (exchange,) = self.opened
        return exchange

    def points(self, series: str) -> list[tuple[int, float]]:
        updates = self.recorder.read(0)[3]
        return [(u.step, u.value) for u in updates if isinstance(u, MetricPoint) and u.series == series]


def test_a_training_without_early_stopping_ends_with_its_last_weights(make_plan: MakePlan) -> None:
    training = Training(make_plan(epochs=4))
    result = training.run()
    assert (result.epochs, result.steps, result.best_epoch, result.stopped_early) == (4, 20, None, None)
    assert list(training.exchange.at_epochs_end) == [5, 10, 15, 20]
    assert result.weights_sha256 == training.exchange.at_epochs_end[20]
    assert result.metrics["validation_accuracy"] > 0.6  # it learns; one of three kinds would be 0.33


def test_early_stopping_keeps_the_best_epoch(make_plan: MakePlan) -> None:
    overfitting = OptimizerSpec("adamw", 0.03)
    training = Training(make_plan(epochs=60, optimizer=overfitting, early_stopping=EarlyStopping(patience=3)))
    result = training.run()
    losses = [loss for _, loss in training.points("validation_loss")]
    assert result.stopped_early == "early_stopping"
    assert result.best_epoch == losses.index(min(losses)) + 1
    assert result.epochs == result.best_epoch + 3 == len(losses) < 60
    assert result.steps == result.epochs * STEPS_PER_EPOCH
    assert result.weights_sha256 == training.exchange.at_epochs_end[result.best_epoch * STEPS_PER_EPOCH]
    assert result.weights_sha256 != training.exchange.at_epochs_end[result.steps]
    assert result.metrics["validation_loss"] == min(losses)


def test_early_stopping_that_never_stops_keeps_the_best_epoch_too(make_plan: MakePlan) -> None:
    training = Training(make_plan(epochs=5, early_stopping=EarlyStopping(patience=100)))
    result = training.run()
    losses = [loss for _, loss in training.points("validation_loss")]
    assert result.stopped_early is None
    assert (result.epochs, result.best_epoch) == (5, losses.index(min(losses)) + 1)


def test_a_stop_after_the_last_epoch_is_none(make_plan: MakePlan) -> None:
    plan = make_plan(
        epochs=60, optimizer=OptimizerSpec("adamw", 0.03), schedule=ScheduleSpec(), early_stopping=EarlyStopping(3)
    )
    early = Training(plan).run()
    assert early.stopped_early == "early_stopping"
    whole = Training(replace(plan, epochs=early.epochs)).run()
    assert whole.stopped_early is None
    assert (whole.best_epoch, whole.weights_sha256) == (early.best_epoch, early.weights_sha256)


@pytest.mark.parametrize("log_every_steps", [1, 7])
def test_max_seconds_ends_it_within_an_epoch(make_plan: MakePlan, log_every_steps: int) -> None:
    ticks = count(0.0, 1.0)  # every look at the clock takes a second
    plan = make_plan(epochs=100, max_seconds=30.0, log_every_steps=log_every_steps)
    training = Training(plan, clock=lambda: next(ticks))
    result = training.run()
    assert result.stopped_early == "max_seconds"
    assert 1 <= result.steps <= 30
    assert result.steps == len(training.exchange.reports)
    assert result.steps % STEPS_PER_EPOCH != 0
    assert result.epochs == -(-result.steps // STEPS_PER_EPOCH)
    assert result.weights_sha256 == training.exchange.at_epochs_end[result.steps]
    wanted = [*range(log_every_steps, result.steps, log_every_steps), result.steps]
    assert [step for step, _ in training.points("train_loss")] == wanted


def test_max_seconds_counts_from_the_first_step_and_leaves_a_quick_training_alone(make_plan: MakePlan) -> None:
    times: Iterator[float] = iter([0.0])  # preparing takes for ever
    result = Training(make_plan(max_seconds=30.0), clock=lambda: next(times, 1000.0)).run()
    assert (result.steps, result.stopped_early) == (3 * STEPS_PER_EPOCH, None)


def test_cancelling_ends_it_soon_and_closes_the_exchange(make_plan: MakePlan) -> None:
    def cancel(report: StepReport) -> None:
        if report.step == 7:
            training.trainer.cancel()

    training = Training(make_plan(batch_size=1), cancel)
    with pytest.raises(Cancelled):
        training.run()
    assert training.exchange.closed == 1
    assert training.exchange.reports[-1].step <= 1 + 4 + 16  # the trainer looks around within an epoch, too


def test_one_cancelled_before_its_start_opens_nothing(make_plan: MakePlan) -> None:
    training = Training(make_plan())
    training.trainer.cancel()
    with pytest.raises(Cancelled):
        training.run()
    assert training.opened == []


def test_one_that_nobody_asks_about_ends(make_plan: MakePlan) -> None:
    def forget(report: StepReport) -> None:
        if report.step == 7:
            training.recorder.heard_at -= 100.0

    training = Training(make_plan(epochs=10_000), forget, orphan_seconds=60.0)
    with pytest.raises(Orphaned):
        training.run()
    assert training.exchange.closed == 1
    assert Training(make_plan(), forget, orphan_seconds=None).trainer.run().steps == 15


def test_divergence_ends_it_and_closes_the_exchange(make_plan: MakePlan) -> None:
    training = Training(make_plan(epochs=50, optimizer=OptimizerSpec("sgd", 1e6)))
    with pytest.raises(Diverged) as diverged:
        training.run()
    assert diverged.value.shard in (0, 1, 2)
    assert diverged.value.step >= len(training.exchange.reports) + 1
    assert training.exchange.closed == 1


class Blind(Watched):
    """Its validation rows lead beyond the numbers, which the training rows do not."""

    def evaluate(self, split: str, which: str = "current") -> np.ndarray:
        sums = super().evaluate(split, which)
        return np.where(np.arange(len(sums)) == 1, np.inf, sums)


def test_a_validation_loss_that_is_no_number_is_divergence(make_plan: MakePlan) -> None:
    training = Training(make_plan(), kind=Blind)
    with pytest.raises(Diverged, match="step 5: the validation_loss is not finite"):
        training.run()
    assert training.points("validation_loss") == []


@pytest.mark.parametrize("every", [1, 4, 15, 100])
def test_log_intervals_are_means_over_every_step_once(make_plan: MakePlan, every: int) -> None:
    training = Training(make_plan(log_every_steps=every, data={"weight_column": "weight"}))
    result = training.run()
    reports = training.exchange.reports
    assert [report.step for report in reports] == list(range(1, result.steps + 1))
    wanted = []
    for start in range(0, result.steps, every):
        part = reports[start : start + every]
        mean = sum(r.loss * r.weight_sum for r in part) / sum(r.weight_sum for r in part)
        wanted.append((part[-1].step, pytest.approx(mean)))
    assert training.points("train_loss") == wanted
    assert training.points("learning_rate") == [(step, reports[step - 1].learning_rate) for step, _ in wanted]


@pytest.mark.parametrize(
    ("table", "names"), [("classes", ["loss", "accuracy"]), ("values", ["loss", "rmse", "mae", "r2"])]
)
def test_validation_metrics_come_each_epoch_and_test_metrics_at_the_end(
    make_plan: MakePlan, table: str, names: list[str]
) -> None:
    training = Training(make_plan(table))
    result = training.run()
    per_epoch = result.steps // 3
    assert list(result.metrics) == [f"{split}_{name}" for split in ("validation", "test") for name in names]
    for name in names:
        points = training.points(f"validation_{name}")
        assert [step for step, _ in points] == [per_epoch, 2 * per_epoch, 3 * per_epoch]
        assert points[-1][1] == result.metrics[f"validation_{name}"]
        assert training.points(f"test_{name}") == [(result.steps, result.metrics[f"test_{name}"])]


def test_it_looks_inside_the_network_at_some_epochs_ends(make_plan: MakePlan) -> None:
    training = Training(make_plan(epochs=103))
    result = training.run()
    looks = [STEPS_PER_EPOCH * epoch for epoch in range(1, 104, 3)]  # every second one would be more than 50
    for layer in ("layer1", "layer2", "layer3"):
        for figure in ("saturation", "signal_spread", "activation_mean", "weights.update_ratio", "bias.update_ratio"):
            assert [step for step, _ in training.points(f"diagnostics/{layer}.{figure}")] == looks
    assert 0 < training.points("diagnostics/layer1.saturation")[-1][1] < 1
    assert not [name for name in (*result.metrics, *training.recorder.read(0)[1]) if "/" in name]


def test_looks_change_no_weight_and_one_that_stops_early_looks_before_its_end(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(epochs=40, optimizer=OptimizerSpec("adamw", 0.03), early_stopping=EarlyStopping(patience=3))
    looking = Training(plan)
    result = looking.run()
    assert result.stopped_early == "early_stopping"
    assert [step for step, _ in looking.points("diagnostics/layer1.saturation")] == [
        STEPS_PER_EPOCH * epoch for epoch in range(1, result.epochs + 1)
    ]
    monkeypatch.setattr("worker.trainer.is_due", lambda epoch, epochs: False)
    blind = Training(plan)
    assert blind.run().weights_sha256 == result.weights_sha256
    assert blind.points("diagnostics/layer1.saturation") == []
    assert blind.points("validation_loss") == looking.points("validation_loss")


def parameters_of(result: TrainingResult, folder: Path) -> Any:
    for name, content in result.files.items():
        (folder / name).write_bytes(content)
    return load_model(folder)


def test_test_metrics_are_of_the_test_rows(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(epochs=8)
    result = Training(plan).run()
    model = parameters_of(result, tmp_path)
    features, targets, _ = prepare(plan.data).arrays("test")
    guesses = Network(model.network, len(features)).predict(model.parameters, features)
    assert result.metrics["test_accuracy"] == (guesses.argmax(axis=1) == targets).mean()
    loss = -np.log(guesses[np.arange(len(targets)), targets]).mean()
    assert result.metrics["test_loss"] == pytest.approx(loss, rel=1e-5)


def test_errors_of_a_regression_are_in_the_users_units(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan("values", epochs=8)
    result = Training(plan).run()
    model, fitted = parameters_of(result, tmp_path), prepare(plan.data).preprocessing
    features, targets, _ = prepare(plan.data).arrays("test")
    guesses = Network(model.network, len(features)).predict(model.parameters, features)
    errors = (guesses - targets) * fitted.target_scales
    assert fitted.target_scales.max() > 5  # or the units would not show
    assert result.metrics["test_mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-5)
    assert result.metrics["test_rmse"] == pytest.approx(np.sqrt((errors**2).mean(axis=0)).mean(), rel=1e-5)


def test_the_files_are_the_model_that_the_result_describes(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan(spec={"name": "trees"})
    result = Training(plan).run()
    model = parameters_of(result, tmp_path)
    assert (model.weights_sha256, model.model_sha256) == (result.weights_sha256, result.model_sha256)
    assert (model.spec, model.dataset_sha256) == ({"name": "trees"}, plan.data.dataset_sha256)
    assert model.parameters.size == result.parameters
    assert result.signature == model.preprocessing.signature()
    assert model.predict(result.input_example)[0]["label"] in ("ash", "beech", "cedar")
    assert result.worker_failures == 0


def test_the_seed_decides_the_weights_and_what_is_said_does_not(make_plan: MakePlan) -> None:
    one = Training(make_plan()).run()
    again = Training(make_plan(job_id="job_2", log_every_steps=3)).run()
    other = Training(make_plan(seed=1))
    assert again.weights_sha256 == one.weights_sha256
    assert again.metrics == one.metrics
    assert other.run().weights_sha256 != one.weights_sha256
    assert other.exchange.seeds == (1, 1)  # the first weights and the rows' order


@pytest.mark.parametrize(
    "change",
    [
        {"shards": 2},
        {"batch_size": 31},
        {"epochs": 4},  # the schedule spans them
        {"optimizer": OptimizerSpec("adamw", 0.011)},
        {"data": {"weight_column": "weight"}},
        {"data": {"split_seed": 1}},
    ],
    ids=str,
)
def test_so_does_every_other_part_of_the_plan(make_plan: MakePlan, change: dict[str, Any]) -> None:
    base = Training(make_plan()).run()
    assert Training(make_plan(**change)).run().weights_sha256 != base.weights_sha256


def test_without_validation_and_test_rows_it_trains_to_the_end(make_plan: MakePlan) -> None:
    plan = make_plan(data={"validation": 0.0, "test": 0.0}, early_stopping=EarlyStopping(patience=1))
    result = Training(plan).run()
    assert (result.metrics, result.best_epoch, result.epochs) == ({}, None, 3)
    assert result.steps == 3 * -(-203 // 32)


def test_progress_goes_from_phase_to_phase(make_plan: MakePlan) -> None:
    seen = []
    training = Training(make_plan(), lambda report: seen.append(training.recorder.read(0)[0]))
    before = training.recorder.read(0)[0]
    training.run()
    after = training.recorder.read(0)[0]
    assert (before.phase, after.phase) == ("preparing", "evaluating")
    assert {progress.phase for progress in seen} == {"training"}
    assert (after.epoch, after.epochs, after.step, after.steps, after.workers) == (3, 3, 15, 15, 1)
    assert [progress.step for progress in seen] == sorted(progress.step for progress in seen)
    told = [progress for progress in seen if progress.step]
    assert all(progress.examples_per_second > 0 for progress in told)
    assert all(progress.eta_seconds is not None for progress in told)
    assert after.eta_seconds is None


def test_the_plan_may_leave_the_widths_open(make_plan: MakePlan) -> None:
    """One-hot widths depend on the training rows; `make_plan` says 1 and 1."""
    plan = make_plan()
    result = Training(plan).run()
    assert result.parameters == (5 + 1) * 24 + (24 + 1) * 12 + (12 + 1) * 3
    given = Training(replace(plan, network=replace(plan.network, inputs=5, outputs=3))).run()
    assert given.weights_sha256 == result.weights_sha256
