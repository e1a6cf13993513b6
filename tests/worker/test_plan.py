"""What crosses between processes comes out as it went in, errors and their words included."""

import dataclasses
import math
import pickle
from typing import Any

import pytest

from core.network import NetworkSpec
from core.optimizers import OptimizerSpec
from core.preprocessing import PreprocessingSpec
from core.schedules import ScheduleSpec
from worker import errors, plan, wiring
from worker.dataset import DatasetError, DataSpec
from worker.sampling import Sampling

NETWORK = NetworkSpec(4, 3, (8, 5))
OPTIMIZER = OptimizerSpec("adamw", 0.01, weight_decay=0.1, clip_norm=1.0)
SCHEDULE = ScheduleSpec("cosine", 0.1)
DATA = DataSpec(
    "/data",
    "d" * 64,
    PreprocessingSpec(("a", "b"), ("y",), "classification"),
    "w",
    0.2,
    0.1,
    "time",
    "day",
    7,
    cache_folder="/prepared",
)
PROGRESS = plan.Progress("training", 2, 9, 40, 180, 1234.5, 6.7, 3)
POINT = plan.MetricPoint("train_loss", 40, 0.25, 1.7e9)
EVENT = plan.TrainerEvent("fault", "warning", "lost w1", {"workers": ["w1"], "step": 3}, 1.7e9)
FAILURE = plan.TrainingFailure("diverged", "step 3", {"step": 3, "shard": None})
RESULT = plan.TrainingResult(
    weights_sha256="a" * 64,
    model_sha256="b" * 64,
    numerics="numpy",
    parameters=88,
    steps=180,
    epochs=9,
    worker_failures=1,
    best_epoch=4,
    stopped_early="early_stopping",
    metrics={"test_loss": 0.5},
    signature={"inputs": []},
    input_example=[{"a": 1}],
    files={"model.json": b"{}"},
)
MESSAGES = [
    plan.Reduced((1.0, math.inf), ((True, 1.0), (False, math.inf))),
    plan.EarlyStopping(5, 0.01),
    plan.TrainingPlan(
        "job_1",
        DATA,
        NETWORK,
        OPTIMIZER,
        SCHEDULE,
        epochs=9,
        batch_size=64,
        shards=3,
        seed=1,
        threads_per_worker=2,
        log_every_steps=10,
        early_stopping=plan.EarlyStopping(3),
        max_seconds=60.0,
        spec={"name": "x"},
    ),
    plan.Attached("numpy", "machine", 4321),
    plan.ShardReport(1, 2, 3, 4.0, 5.0),
    plan.StepReport(1, 2, 3.0, 4.0, 5.0, 6.0),
    POINT,
    EVENT,
    PROGRESS,
    RESULT,
    FAILURE,
    plan.TrainerReport("job_1", 2, PROGRESS, {"train_loss": 0.25}, 7, (POINT, EVENT), "succeeded", RESULT, FAILURE),
    wiring.Place("10.0.0.7", 4711, "machine"),
    wiring.Wiring(3, b"secret", (wiring.Place("10.0.0.7", 4711, "machine"),), ("machine",), ((0, 2), (1,))),
    wiring.Stretch((plan.StepReport(1, 2, 3.0, 4.0, 5.0, 6.0),), ("worker 0", "it has closed the connection")),
    wiring.Standing(7, ((7, plan.Reduced((2.0,))), (8, plan.Reduced((1.0,))))),
    plan.LocalPlan(OPTIMIZER, SCHEDULE, 350),
    plan.StepPlan("/prepared/x", NETWORK, Sampling(100, 8, 3, 1), OPTIMIZER, SCHEDULE, 117, 1),
]
ERRORS = [
    (errors.Diverged(7, 2, "loss"), "step 7: the loss of shard 2 is not finite"),
    (errors.Diverged(7, None, "gradient"), "step 7: the gradient is not finite"),
    (errors.StepRefused(5, 3), "step 5 does not follow step 3, the committed one"),
    (errors.RemoteLost("w1"), "a process of the exchange died: w1"),
    (errors.LinkBroken("worker 1", "it has closed"), "the link to worker 1 broke: it has closed"),
    (errors.TooManyFailures(31, 60.0), "31 workers were lost within 60 s"),
    (errors.Cancelled(), ""),
    (errors.Paused(), ""),
    (errors.ShardMissing(7, 2), "step 7: nobody has computed shard 2"),
    (errors.SeatStopped(), ""),
    (errors.Orphaned(30.0), "nobody has asked about the job for 30 s"),
    (errors.TrainerLost("job_1", 2), "the trainer of job_1, attempt 2, is gone"),
    (errors.ClusterLost("no answer"), "Ray is lost: no answer"),
    (
        errors.WarmStartDamaged("/job_1/warm-start", "no such file"),
        "the model to start from, kept in /job_1/warm-start, is damaged: no such file",
    ),
]


def through_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_survive_pickling_and_cannot_be_changed(message: Any) -> None:
    copy = through_pickle(message)
    assert copy is not message
    assert copy == message
    for field in dataclasses.fields(message):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(copy, field.name, None)


@pytest.mark.parametrize(("error", "text"), ERRORS, ids=lambda value: getattr(type(value), "__name__", None))
def test_errors_survive_pickling_with_their_attributes_and_words(error: errors.WorkerError, text: str) -> None:
    copy = through_pickle(error)
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == str(error) == text
    assert isinstance(error, errors.WorkerError)


def test_a_dataset_error_survives_pickling() -> None:
    error = DatasetError("/prepared/x", "damaged")
    assert str(through_pickle(error)) == str(error)


def test_none_is_missing_here() -> None:
    defined = {
        kind
        for module in (plan, wiring)
        for kind in vars(module).values()
        if dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__
    }
    assert defined == {type(message) for message in MESSAGES}
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    elsewhere = {kind for kind in kinds if issubclass(kind, errors.CheckpointError)}  # tests/worker/test_checkpoint.py
    assert kinds - elsewhere - {errors.WorkerError} == {type(error) for error, _ in ERRORS}


def test_a_step_plan_has_the_shards_of_its_sampling() -> None:
    assert MESSAGES[-1].shards == 3
