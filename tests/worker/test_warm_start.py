"""Trainings that begin with another one's weights: the same in every exchange, through cuts, and checked by hash."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.model_file import load_model
from core.network import initial_parameters
from core.optimizers import OptimizerSpec
from worker import futex
from worker.checkpoint import plan_digest
from worker.dataset import prepare
from worker.errors import Paused, WarmStartDamaged
from worker.exchange import Exchange, InProcessExchange
from worker.plan import StepPlan, TrainerEvent, TrainingPlan, TrainingResult
from worker.recorder import Recorder
from worker.trainer import Trainer
from worker.trainer_host import failure_of
from worker.warm_start import FOLDER, Kept, keep, kept_preprocessing, kept_weights, preprocessing_sha256

MakePlan = Callable[..., TrainingPlan]
Open = Callable[[StepPlan, int], Exchange]
NEEDS_FUTEX = pytest.mark.skipif(not futex.SUPPORTED, reason="words in shared memory need x86-64 Linux (worker.futex)")


def trained(
    plan: TrainingPlan, open_exchange: Open = InProcessExchange, attempt: int = 1
) -> tuple[TrainingResult, Recorder]:
    recorder = Recorder(workers=1)
    return Trainer(plan, recorder, open_exchange, attempt=attempt).run(), recorder


def losses(recorder: Recorder) -> list[float]:
    """Of the validation rows, epoch by epoch."""
    updates = recorder.read(0)[3]
    return [u.value for u in updates if not isinstance(u, TrainerEvent) and u.series == "validation_loss"]


def said(recorder: Recorder) -> list[str]:
    return [update.message for update in recorder.read(0)[3] if isinstance(update, TrainerEvent)]


@pytest.fixture
def source(make_plan: MakePlan, tmp_path: Path) -> tuple[Path, list[float]]:
    """The folder of a kept model, and the validation losses of its training."""
    result, recorder = trained(make_plan(epochs=12))
    files = tmp_path / "model"
    files.mkdir()
    for name, content in result.files.items():
        (files / name).write_bytes(content)
    folder = tmp_path / "job" / FOLDER
    keep(folder, load_model(files))
    return folder, losses(recorder)


@pytest.fixture
def warm(make_plan: MakePlan, source: tuple[Path, list[float]]) -> TrainingPlan:
    """A plan that begins with them."""
    return started(make_plan(epochs=3, optimizer=OptimizerSpec("sgd", 0.01, momentum=0.9), seed=8), source[0])


def started(plan: TrainingPlan, folder: Path) -> TrainingPlan:
    model = load_model(folder)
    fitted = Kept(str(folder), preprocessing_sha256(model.preprocessing))
    return replace(plan, data=replace(plan.data, fitted=fitted), warm_start=Kept(str(folder), model.weights_sha256))


@pytest.fixture(params=["objects", "sockets", pytest.param("shared memory", marks=NEEDS_FUTEX)])
def open_exchange(request: pytest.FixtureRequest, open_over: Callable[[str, StepPlan, int], Exchange]) -> Open:
    return partial(open_over, request.param)


def test_it_goes_on_where_the_source_has_ended(
    make_plan: MakePlan, warm: TrainingPlan, source: tuple[Path, list[float]]
) -> None:
    result, recorder = trained(warm)
    cold = losses(trained(replace(warm, warm_start=None))[1])
    before = source[1]
    assert losses(recorder)[0] < 1.1 * before[-1] < 0.7 * cold[0]
    assert said(recorder)[0].startswith("begins with the weights ")
    assert result.weights_sha256 != load_model(source[0]).weights_sha256


def test_every_exchange_begins_with_the_same_weights(warm: TrainingPlan, open_exchange: Open) -> None:
    wanted, _ = trained(warm)
    found, _ = trained(warm, open_exchange)
    assert found.weights_sha256 == wanted.weights_sha256
    assert found.files == wanted.files


def test_a_round_of_local_steps_begins_with_them_too(warm: TrainingPlan, open_exchange: Open) -> None:
    local = replace(warm, batch_size=8, local_steps=4, outer="nesterov")
    assert trained(local, open_exchange)[0].weights_sha256 == trained(local)[0].weights_sha256


def test_the_optimizer_and_the_schedule_begin_anew(warm: TrainingPlan, source: tuple[Path, list[float]]) -> None:
    """The first step is that of a plain training from these parameters."""
    opened: list[Exchange] = []

    def keeping(plan: StepPlan, seed: int) -> Exchange:
        opened.append(InProcessExchange(plan, seed))
        opened[0].run_steps, run = lambda count: looked(run, count), opened[0].run_steps  # type: ignore[method-assign]
        return opened[0]

    states = []

    def looked(run: Callable[[int], Any], count: int) -> Any:
        states.append(opened[0].snapshot())
        return run(count)

    trained(warm, keeping)
    assert (states[0][0] == load_model(source[0]).parameters).all()
    assert not states[0][1:].any()
    assert len(states[0]) == 2


def test_its_own_checkpoint_goes_before(warm: TrainingPlan, tmp_path: Path) -> None:
    """And needs what was kept no more."""
    plan = replace(warm, checkpoint_folder=str(tmp_path / "job"))
    wanted, undisturbed = trained(warm)
    recorder = Recorder(workers=1)
    trainer: list[Trainer] = []

    def pausing(steps: StepPlan, seed: int) -> Exchange:
        exchange = InProcessExchange(steps, seed)
        run = exchange.run_steps

        def one(count: int) -> Any:
            reports = run(1)
            if reports[-1].step == 6:
                trainer[0].pause()
            return reports

        exchange.run_steps = one  # type: ignore[method-assign]
        return exchange

    trainer.append(Trainer(plan, recorder, pausing))
    with pytest.raises(Paused):
        trainer[0].run()
    (tmp_path / "job" / FOLDER / "weights.safetensors").unlink()
    result, again = trained(plan, attempt=2)
    assert "goes on from the checkpoint of step 6" in said(again)
    assert not any(message.startswith("begins with") for message in said(again))
    assert (result.files, losses(again)[-2:]) == (wanted.files, losses(undisturbed)[-2:])


def test_without_a_whole_checkpoint_it_begins_with_them_again(warm: TrainingPlan, tmp_path: Path) -> None:
    plan = replace(warm, checkpoint_folder=str(tmp_path / "job"))
    (tmp_path / "job" / "step-3").mkdir(parents=True)
    result, recorder = trained(plan, attempt=2)
    assert result.weights_sha256 == trained(warm)[0].weights_sha256
    assert any(message.startswith("begins with the weights ") for message in said(recorder))


def test_the_sources_preprocessing_is_taken_as_it_is(warm: TrainingPlan, source: tuple[Path, list[float]]) -> None:
    """On rows that would give another one."""
    other = replace(warm.data, split_seed=9)
    theirs = load_model(source[0]).preprocessing.to_json()
    assert prepare(other).preprocessing.to_json() == theirs
    assert prepare(replace(other, fitted=None)).preprocessing.to_json() != theirs
    assert prepare(replace(other, class_weight="balanced")).preprocessing.to_json() == theirs


def test_where_it_lies_decides_nothing_and_what_it_is_does(warm: TrainingPlan, tmp_path: Path) -> None:
    assert warm.data.fitted is not None
    assert warm.warm_start is not None
    elsewhere = replace(
        warm,
        data=replace(warm.data, fitted=replace(warm.data.fitted, folder="/elsewhere")),
        warm_start=replace(warm.warm_start, folder="/elsewhere"),
    )
    assert plan_digest(elsewhere) == plan_digest(warm)
    assert elsewhere.data.key() == warm.data.key()
    other = replace(warm, warm_start=replace(warm.warm_start, sha256="0" * 64))
    fitted = replace(warm, data=replace(warm.data, fitted=replace(warm.data.fitted, sha256="0" * 64)))
    cold = replace(warm, warm_start=None)
    assert len({plan_digest(plan) for plan in (warm, other, fitted, cold)}) == 4
    assert warm.data.key() == other.data.key() != fitted.data.key()


def flip(folder: Path) -> None:
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def test_what_is_damaged_ends_the_job_with_words(warm: TrainingPlan, source: tuple[Path, list[float]]) -> None:
    prepare(warm.data)
    flip(source[0])
    with pytest.raises(WarmStartDamaged, match=r"weights\.safetensors: damaged") as raised:
        trained(warm)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
    failure = failure_of(raised.value)
    assert (failure.code, failure.message.endswith("; submit the job again")) == ("invalid_warm_start", True)


def test_another_model_in_its_place_is_no_source(warm: TrainingPlan, source: tuple[Path, list[float]]) -> None:
    """Whole, and not what was meant."""
    model = load_model(source[0])
    drawn = initial_parameters(model.network, 1)
    keep(source[0], replace(model, parameters=drawn))
    assert warm.warm_start is not None
    with pytest.raises(WarmStartDamaged, match="its hash is"):
        kept_weights(warm.warm_start)
    fitted = Kept(str(source[0]), "0" * 64)
    with pytest.raises(WarmStartDamaged, match="its hash is"):
        kept_preprocessing(fitted)
    assert (kept_weights(Kept(str(source[0]), load_model(source[0]).weights_sha256)) == np.asarray(drawn)).all()
