"""Trainings that are cut off and go on from a checkpoint: the same weights, series and best epoch as undisturbed."""

import os
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from core.optimizers import OptimizerSpec
from worker import futex
from worker.checkpoint_store import CheckpointStore
from worker.errors import Cancelled, Orphaned, Paused
from worker.exchange import Exchange, InProcessExchange
from worker.plan import EarlyStopping, MetricPoint, StepPlan, StepReport, TrainerEvent, TrainingPlan, TrainingResult
from worker.recorder import Recorder
from worker.trainer import Trainer

MakePlan = Callable[..., TrainingPlan]
Open = Callable[[StepPlan, int], Exchange]
Series = dict[tuple[str, int], float]
NEEDS_FUTEX = pytest.mark.skipif(not futex.SUPPORTED, reason="words in shared memory need x86-64 Linux (worker.futex)")
JOBS: dict[str, dict[str, Any]] = {
    "momentum": {"optimizer": OptimizerSpec("sgd", 0.05, momentum=0.9)},
    "adam": {"optimizer": OptimizerSpec("adam", 0.03)},
    "local steps": {  # five rounds an epoch, as the others have steps
        "optimizer": OptimizerSpec("sgd", 0.05, momentum=0.9),
        "batch_size": 8,
        "local_steps": 4,
        "outer": "nesterov",
    },
}


class Killed(BaseException):
    """The process ends here, as far as a test in the same process can have it."""


class Store:
    """What a service keeps of a job: of each point the first write, and the events."""

    def __init__(self) -> None:
        self.points: Series = {}
        self.events: list[TrainerEvent] = []

    def hear(self, recorder: Recorder, acknowledged: int) -> int:
        """Write all that is new; the number to acknowledge."""
        _, _, first, updates = recorder.read(acknowledged)
        for update in updates:
            if isinstance(update, MetricPoint):
                self.points.setdefault((update.series, update.step), update.value)
            else:
                self.events.append(update)
        return first + len(updates) - 1

    def said(self, kind: str) -> list[str]:
        return [event.message for event in self.events if event.type == kind]


class Attempt:
    """One attempt at a plan. `at` is called after each step, one at a time."""

    def __init__(
        self,
        plan: TrainingPlan,
        number: int = 1,
        open_exchange: Open = InProcessExchange,
        at: Callable[["Attempt", StepReport], None] = lambda attempt, report: None,
        **options: Any,
    ) -> None:
        self.recorder, self.steps = Recorder(workers=1), list[int]()
        self._open, self._at = open_exchange, at
        self.trainer = Trainer(plan, self.recorder, self._opened, attempt=number, **options)

    def _opened(self, plan: StepPlan, seed: int) -> Exchange:
        exchange = self._open(plan, seed)
        run_steps = exchange.run_steps

        def one(count: int) -> list[StepReport]:
            (report,) = run_steps(1)  # so that there is a boundary behind every step
            self.steps.append(report.step)
            self._at(self, report)
            return [report]

        exchange.run_steps = one  # type: ignore[method-assign]
        return exchange

    def run(self) -> TrainingResult:
        return self.trainer.run()


def pause_at(step: int) -> Callable[[Attempt, StepReport], None]:
    def at(attempt: Attempt, report: StepReport) -> None:
        if report.step == step:
            attempt.trainer.pause()

    return at


def told(result: TrainingResult) -> dict[str, Any]:
    """What must come out the same."""
    return {name: value for name, value in vars(result).items() if name != "worker_failures"}


def undisturbed(plan: TrainingPlan) -> tuple[dict[str, Any], Series]:
    attempt, store = Attempt(replace(plan, checkpoint_folder=None)), Store()
    result = attempt.run()
    store.hear(attempt.recorder, 0)
    return told(result), store.points


@pytest.fixture
def make_job(make_plan: MakePlan, tmp_path: Path) -> MakePlan:
    """A plan with checkpoints, early stopping, dropout, and log intervals that go across epochs."""

    def make(name: str = "adam", **changes: Any) -> TrainingPlan:
        base = {"epochs": 8, "early_stopping": EarlyStopping(2), "log_every_steps": 7, **JOBS[name]}
        plan = make_plan(**{"checkpoint_folder": str(tmp_path / "checkpoints"), **base, **changes})
        return replace(plan, network=replace(plan.network, dropout=0.2))

    return make


@pytest.fixture(params=["in process", "objects", "sockets", pytest.param("shared memory", marks=NEEDS_FUTEX)])
def open_exchange(request: pytest.FixtureRequest, open_over: Callable[[str, StepPlan, int], Exchange]) -> Open:
    return partial(open_over, request.param)


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("cut", [1, 5, 12])  # 5: an epoch's end
def test_a_paused_training_ends_as_if_it_had_not_been(
    make_job: MakePlan, open_exchange: Open, name: str, cut: int
) -> None:
    plan, store = make_job(name), Store()
    first = Attempt(plan, 1, open_exchange, pause_at(cut))
    with pytest.raises(Paused):
        first.run()
    assert first.steps[-1] == cut
    (kept,) = CheckpointStore(plan.checkpoint_folder or "").list()
    assert (kept.step, kept.epoch) == (cut, cut // 5)
    second = Attempt(plan, 2, open_exchange)
    result = second.run()
    assert second.steps[0] == cut + 1
    store.hear(second.recorder, 0)  # the first was never heard: the second says it all
    assert (told(result), store.points) == undisturbed(plan)
    assert store.said("checkpoint")[0] == f"goes on from the checkpoint of step {cut}"


@pytest.mark.parametrize("seed", range(6))
def test_any_number_of_cuts_at_any_step_changes_nothing(make_job: MakePlan, seed: int) -> None:
    chance = random.Random(seed)
    plan, store = (
        make_job(chance.choice(list(JOBS)), checkpoint_every_seconds=chance.choice([0.0, 0.003, 100.0])),
        Store(),
    )

    def at(attempt: Attempt, report: StepReport) -> None:
        nonlocal heard
        if chance.random() < 0.2:
            heard = store.hear(attempt.recorder, heard)
        if chance.random() < 0.15:
            attempt.trainer.pause()
        elif chance.random() < 0.1:
            raise Killed

    for number in range(1, 100):
        attempt, heard = Attempt(plan, number, at=at), 0
        try:
            result = attempt.run()
        except (Paused, Killed):
            continue
        break
    assert number > 1
    store.hear(attempt.recorder, heard)
    assert (told(result), store.points) == undisturbed(plan)


def cut_off(plan: TrainingPlan, step: int = 12) -> None:
    """Checkpoints after each epoch's second step, and one at `step`."""
    for number, cut in enumerate((2, 7, step), 1):
        with pytest.raises(Paused):
            Attempt(plan, number, at=pause_at(cut)).run()


def damage(folder: Path, how: str) -> None:
    path = folder / "arrays.safetensors"
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:
        content = bytearray(path.read_bytes())
        content[-5] ^= 4
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["flipped", "truncated", "deleted"])
def test_where_the_newest_is_broken_the_one_before_is_used(make_job: MakePlan, how: str) -> None:
    plan, store = make_job(), Store()
    cut_off(plan)
    damage(Path(plan.checkpoint_folder or "") / "step-12", how)
    attempt = Attempt(plan, 4)
    result = attempt.run()
    assert attempt.steps[0] == 8
    store.hear(attempt.recorder, 0)
    assert (told(result), store.points) == undisturbed(plan)
    (fault,) = store.said("fault")
    assert fault.startswith("the checkpoint of step 12 is broken (")
    assert store.said("checkpoint")[0] == "goes on from the checkpoint of step 7"


def test_where_all_are_broken_it_starts_over_and_says_so(make_job: MakePlan) -> None:
    plan, store = make_job(), Store()
    cut_off(plan)
    for step in (2, 7, 12):
        damage(Path(plan.checkpoint_folder or "") / f"step-{step}", "flipped")
    attempt = Attempt(plan, 4)
    result = attempt.run()
    assert attempt.steps[0] == 1
    store.hear(attempt.recorder, 0)
    assert (told(result), store.points) == undisturbed(plan)
    assert store.said("fault")[3:] == ["no checkpoint is whole: the job starts again from step 0"]


class OtherBuild(InProcessExchange):
    """Workers whose arithmetic has another fingerprint."""

    numerics: str = "another build"

    def __init__(self, plan: StepPlan, seed: int) -> None:
        super().__init__(plan, seed)
        self.numerics = "another build"


@pytest.mark.parametrize("other", ["numerics", "plan"])
def test_checkpoints_that_do_not_belong_here_are_out_of_the_way_for_good(make_job: MakePlan, other: str) -> None:
    plan, store = make_job(), Store()
    cut_off(plan)
    kind = OtherBuild if other == "numerics" else InProcessExchange
    plan = plan if other == "numerics" else replace(plan, seed=1)
    fourth = Attempt(plan, 4, kind, pause_at(3))
    with pytest.raises(Paused):
        fourth.run()
    assert fourth.steps[0] == 1
    store.hear(fourth.recorder, 0)
    (fault,) = store.said("fault")
    assert fault.startswith("the checkpoints cannot be used: ")
    assert fault.endswith("the job starts again from step 0")
    fifth = Attempt(plan, 5, kind)
    fifth.run()
    assert fifth.steps[0] == 4  # though those of the former training are of later steps


def test_a_disk_that_takes_none_is_told_of_once_and_training_goes_on(make_job: MakePlan, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    plan, store = make_job(checkpoint_folder=str(tmp_path / "file" / "below"), checkpoint_every_seconds=0.0), Store()
    attempt = Attempt(plan)
    result = attempt.run()
    store.hear(attempt.recorder, 0)
    assert (told(result), store.points) == undisturbed(plan)
    assert len(store.said("fault")) == 2  # none can be read, none can be written
    assert "training goes on" in store.said("fault")[1]
    with pytest.raises(Paused):
        Attempt(plan, 2, at=pause_at(3)).run()


def test_every_checkpoint_is_told_of(make_job: MakePlan) -> None:
    plan, store = make_job(), Store()
    cut_off(plan)
    attempt = Attempt(plan, 4, at=pause_at(14))
    with pytest.raises(Paused):
        attempt.run()
    store.hear(attempt.recorder, 0)
    resumed, saved = [event for event in store.events if event.type == "checkpoint"]
    assert resumed.data == {"step": 12, "epoch": 2, "written_by_attempt": 3}
    newest = CheckpointStore(plan.checkpoint_folder or "").list()[0]
    known = {"step": 14, "epoch": 2, "bytes": newest.bytes, "sha256": newest.sha256}
    assert known.items() <= saved.data.items()
    assert saved.message.startswith("checkpoint of step 14: ")


def test_the_latest_values_stay_known(make_job: MakePlan) -> None:
    plan = make_job()
    cut_off(plan)
    attempt = Attempt(plan, 4, at=pause_at(13))
    with pytest.raises(Paused):
        attempt.run()
    undisturbed_points = undisturbed(plan)[1]
    progress, latest, *_ = attempt.recorder.read(0)
    assert latest["validation_loss"] == undisturbed_points["validation_loss", 10]  # an earlier attempt's
    assert (progress.step, progress.epoch) == (13, 3)


def test_a_trainer_that_nobody_polls_leaves_a_checkpoint(make_job: MakePlan) -> None:
    plan = make_job()

    def at(attempt: Attempt, report: StepReport) -> None:
        if report.step == 6:
            attempt.recorder.heard_at = -1e9

    with pytest.raises(Orphaned):
        Attempt(plan, at=at, orphan_seconds=1e6).run()
    assert [kept.step for kept in CheckpointStore(plan.checkpoint_folder or "").list()] == [6]


def test_a_pause_before_the_first_step_leaves_nothing(make_job: MakePlan) -> None:
    plan = make_job()
    attempt = Attempt(plan)
    attempt.trainer.pause()
    with pytest.raises(Paused):
        attempt.run()
    assert not Path(plan.checkpoint_folder or "").exists()


def test_a_cancelled_training_writes_none(make_job: MakePlan) -> None:
    plan = make_job()
    attempt = Attempt(plan, at=lambda attempt, report: (attempt.trainer.pause(), attempt.trainer.cancel())[0])
    with pytest.raises(Cancelled):
        attempt.run()
    assert not Path(plan.checkpoint_folder or "").exists()


def test_the_seconds_and_the_lost_workers_of_all_attempts_count(make_job: MakePlan) -> None:
    plan, now = make_job(epochs=100, early_stopping=None, max_seconds=20.0), [1000.0]

    def tick(attempt: Attempt, report: StepReport) -> None:
        now[0] += 1.0
        if report.step == 12:
            attempt.trainer.pause()

    class Unlucky(InProcessExchange):
        failures = 2

    with pytest.raises(Paused):
        Attempt(plan, 1, Unlucky, tick, clock=lambda: now[0]).run()
    now[0] += 500.0  # paused
    result = Attempt(plan, 2, Unlucky, tick, clock=lambda: now[0]).run()
    assert (result.stopped_early, result.steps, result.worker_failures) == ("max_seconds", 21, 4)
