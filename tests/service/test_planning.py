"""A resolved spec -> the plan that a trainer gets: every number of the spec arrives, and the data is where it lies."""

from dataclasses import replace
from typing import Any

from core.network import NetworkSpec
from service.planning import training_plan
from service.records import DatasetRecord, JobRecord
from service.resolve import Limits, resolve
from service.schemas import JobSpec
from service.settings import Settings
from service.store import Store
from worker.plan import EarlyStopping, TrainingPlan

from .conftest import SHA, Fill

SETTINGS = Settings.from_environment({"FALLLINE_HOME": "/home"})
COLUMNS: list[dict[str, Any]] = [
    {"name": "a", "type": "number", "distinct": 80, "missing": 0},
    {"name": "b", "type": "text", "distinct": 4, "missing": 2},
    {"name": "w", "type": "number", "distinct": 9, "missing": 0, "minimum": 0.5},
    {"name": "day", "type": "integer", "distinct": 90, "missing": 0},
    {"name": "kind", "type": "text", "distinct": 3, "missing": 0},
]


def planned(store: Store, fill: Fill, **fields: Any) -> tuple[TrainingPlan, JobRecord, DatasetRecord]:
    dataset = fill.dataset(columns=COLUMNS)
    known = {"id": dataset.id, "name": dataset.name, "rows": dataset.rows, "columns": dataset.columns}
    spec = JobSpec.model_validate({"dataset": dataset.id, "target": "kind", **fields})
    found = resolve(spec, known, Limits(10**8, 16))
    job = store.create_job("job_1", "name", dataset.id, found.spec, found.plan, {}, found.model_name)
    return training_plan(job, dataset, SETTINGS), job, dataset


def test_everything_the_user_chose_arrives(store: Store, fill: Fill) -> None:
    plan, job, dataset = planned(
        store,
        fill,
        features=["b", "a"],
        weight_column="w",
        split={"validation": 0.3, "test": 0.1, "by": "time", "column": "day", "seed": 3},
        preprocessing={"numeric": "none", "missing": "error", "unseen": "error"},
        network={"hidden": [7, 5], "activation": "tanh"},
        optimizer={"name": "sgd", "learning_rate": 0.3, "momentum": 0.5, "nesterov": True, "clip_norm": 2.0},
        schedule={"name": "constant", "warmup": 0.1},
        training={
            "epochs": 4,
            "batch_size": 11,
            "seed": 9,
            "early_stopping": {"patience": 2},
            "max_seconds": 60,
            "log_every_steps": 3,
        },
        distribution={"shards": 3, "threads_per_worker": 2},
    )
    data = plan.data
    assert (data.dataset_folder, data.cache_folder) == (f"/home/datasets/{dataset.id}", "/home/prepared")
    assert (data.dataset_sha256, data.weight_column) == (SHA, "w")
    assert (data.preprocessing.features, data.preprocessing.targets) == (("b", "a"), ("kind",))
    treatment = data.preprocessing
    assert (treatment.task, treatment.numeric, treatment.missing, treatment.unseen) == (
        "classification",
        "none",
        "error",
        "error",
    )
    assert (data.validation, data.test, data.split_by, data.split_column, data.split_seed) == (
        0.3,
        0.1,
        "time",
        "day",
        3,
    )
    assert plan.network == NetworkSpec(5, 3, (7, 5), "tanh", "glorot", loss="cross_entropy")
    optimizer = plan.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.momentum) == ("sgd", 0.3, 0.5)
    assert (optimizer.nesterov, optimizer.clip_norm) == (True, 2.0)
    assert (plan.schedule.name, plan.schedule.warmup) == ("constant", 0.1)
    assert (plan.epochs, plan.batch_size, plan.seed, plan.log_every_steps) == (4, 11, 9, 3)
    assert (plan.early_stopping, plan.max_seconds) == (EarlyStopping(2), 60.0)
    assert (plan.shards, plan.threads_per_worker) == (3, 2)
    assert (plan.job_id, plan.spec) == (job.id, job.spec)


def test_two_jobs_of_one_spec_differ_in_nothing_but_the_id(store: Store, fill: Fill) -> None:
    plan, job, dataset = planned(store, fill)
    other = training_plan(replace(job, id="job_2"), dataset, SETTINGS)
    assert replace(other, job_id=plan.job_id) == plan
    assert other.data.key() == plan.data.key()


def test_several_targets_are_a_regression_of_as_many_outputs(store: Store, fill: Fill) -> None:
    plan, _, _ = planned(store, fill, target=["a", "day"], split={"validation": 0.0})
    assert (plan.network.outputs, plan.network.loss) == (2, "squared_error")
    assert plan.data.preprocessing.targets == ("a", "day")
    assert plan.early_stopping is None
