"""A resolved spec -> the plan that a trainer gets: every number of the spec arrives, and the data is where it lies."""

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest

from core.network import NetworkSpec, summary
from core.optimizers import OptimizerSpec
from core.schedules import ScheduleSpec
from service.planning import training_plan
from service.records import DatasetRecord, JobRecord
from service.resolve import Limits, resolve
from service.schemas import JobSpec
from service.settings import Settings
from service.store import Store
from worker.checkpoint import plan_digest
from worker.plan import EarlyStopping, TrainingPlan

from .conftest import SHA, Fill

SETTINGS = Settings.from_environment({"FALLLINE_HOME": "/home"})
COLUMNS: list[dict[str, Any]] = [
    {"name": "a", "type": "number", "distinct": 80, "missing": 0},
    {"name": "b", "type": "text", "distinct": 4, "missing": 2},
    {"name": "w", "type": "number", "distinct": 9, "missing": 0, "minimum": 0.5},
    {"name": "day", "type": "integer", "distinct": 90, "missing": 0},
    {"name": "kind", "type": "text", "distinct": 3, "missing": 0, "values": ["ash", "beech", "cedar"]},
    {"name": "sold", "type": "boolean", "distinct": 2, "missing": 0, "values": [False, True]},
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
            "checkpoint_every_seconds": 7,
            "log_every_steps": 3,
        },
        distribution={"shards": 3, "threads_per_worker": 2, "gradient_precision": "half"},
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
    assert (plan.checkpoint_folder, plan.checkpoint_every_seconds) == ("/home/checkpoints/job_1", 7)
    assert (plan.shards, plan.threads_per_worker, plan.half_gradients) == (3, 2, True)
    assert (plan.job_id, plan.spec) == (job.id, job.spec)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"mode": "local", "local_steps": 16, "outer": "nesterov"}, (16, "nesterov")),
        ({"mode": "local"}, (1, "average")),
        ({}, (None, "average")),
    ],
)
def test_local_steps_arrive(store: Store, fill: Fill, given: Any, wanted: Any) -> None:
    plan, _, _ = planned(store, fill, distribution=given)
    assert (plan.local_steps, plan.outer) == wanted
    without = replace(plan, local_steps=None, outer="average")
    assert (plan_digest(plan) == plan_digest(without)) == (not given)


def test_two_jobs_of_one_spec_differ_in_nothing_but_the_id(store: Store, fill: Fill) -> None:
    plan, job, dataset = planned(store, fill)
    other = training_plan(replace(job, id="job_2"), dataset, SETTINGS)
    assert replace(other, job_id=plan.job_id, checkpoint_folder=plan.checkpoint_folder) == plan
    assert plan_digest(other) == plan_digest(plan)
    assert other.data.key() == plan.data.key()


def test_several_targets_are_a_regression_of_as_many_outputs(store: Store, fill: Fill) -> None:
    plan, _, _ = planned(store, fill, target=["a", "day"], split={"validation": 0.0})
    assert (plan.network.outputs, plan.network.loss) == (2, "squared_error")
    assert plan.data.preprocessing.targets == ("a", "day")
    assert plan.early_stopping is None


GRAPH = [
    {"name": "a", "inputs": ["features"], "units": 6},
    {"name": "b", "inputs": ["a"], "units": 6, "layer_norm": True},
    {"name": "c", "inputs": ["b", "a"], "operation": "sum", "activation": {"name": "elu", "alpha": 0.5}},
]


def test_a_graph_arrives_with_the_widths_of_the_data(store: Store, fill: Fill) -> None:
    graph = GRAPH[::-1]  # whose first layer is not the one that takes the features
    plan, _, _ = planned(
        store,
        fill,
        features=["a", "b"],
        network={"graph": graph, "dropout": 0.1, "input_noise": 0.3, "input_dropout": 0.2},
    )
    network = plan.network
    assert (network.inputs, network.outputs, network.hidden) == (5, 3, ())
    assert [(node.name, node.inputs, node.operation, node.units) for node in network.graph] == [
        ("c", ("b", "a"), "sum", None),
        ("b", ("a",), "affine", 6),
        ("a", ("features",), "affine", 6),
    ]
    assert (network.dropout, network.input_noise, network.input_dropout) == (0.1, 0.3, 0.2)
    meant = NetworkSpec(5, 3, activation="tanh", dropout=0.1, input_noise=0.3, input_dropout=0.2, graph=tuple(graph))
    assert summary(network) == summary(meant)
    for width in (4, 9):  # as the trainer does, for what preparation has found
        prepared = replace(network, inputs=width, outputs=2)
        assert summary(prepared) == summary(replace(meant, inputs=width, outputs=2))


def test_layers_precision_and_the_numbers_of_a_loss_arrive(store: Store, fill: Fill) -> None:
    plan, _, _ = planned(
        store,
        fill,
        target=["a", "day"],
        features=["w"],
        network={"layers": [{"units": 7, "dropout": 0.5}, {"units": 3, "activation": "silu"}], "layer_norm": True},
        loss={"name": "huber", "delta": 2.5},
        training={"precision": "float64"},
    )
    assert plan.network == NetworkSpec(
        1,
        2,
        activation="tanh",
        initializer="glorot",
        loss="huber",
        huber_delta=2.5,
        dtype="float64",
        layer_norm=True,
        layers=(
            {"units": 7, "activation": "tanh", "dropout": 0.5, "layer_norm": True, "initializer": "glorot"},
            {"units": 3, "activation": "silu", "dropout": 0.0, "layer_norm": True, "initializer": "he"},
        ),  # type: ignore[arg-type]  # what the engine makes specifications of
    )
    assert replace(plan.network, inputs=4).layers == plan.network.layers


def test_a_binary_classification_has_two_outputs_by_one_unit(store: Store, fill: Fill) -> None:
    plan, job, _ = planned(store, fill, target="sold", loss="binary_cross_entropy")
    assert (plan.network.outputs, plan.network.loss) == (2, "binary_cross_entropy")
    assert job.plan["layers"][-1]["shape"][1] == 1
    assert replace(plan.network, inputs=3, outputs=2).inputs == 3


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(None, None), ("balanced", "balanced"), ({"cedar": 2, "ash": 3}, (("ash", 3.0), ("cedar", 2.0)))],
)
def test_class_weights_arrive_and_have_arrays_of_their_own(store: Store, fill: Fill, given: Any, wanted: Any) -> None:
    plan, _, _ = planned(store, fill, training={"class_weight": given})
    assert plan.data.class_weight == wanted
    assert pickle.loads(pickle.dumps(plan)) == plan
    plain = replace(plan.data, class_weight=None)
    assert (plan.data.key() == plain.key()) == (given is None)


def test_the_numbers_of_optimizer_and_schedule_arrive(store: Store, fill: Fill) -> None:
    plan, _, _ = planned(
        store,
        fill,
        optimizer={"name": "sgd", "learning_rate": 0.4, "reference_batch_size": 64, "l1": 0.1, "max_norm": 2},
        schedule={"name": "step", "factor": 0.5, "every": 0.1, "warmup": 0.2},
        training={"batch_size": 16},
    )
    assert plan.optimizer == OptimizerSpec("sgd", 0.1, l1=0.1, max_norm=2.0)
    assert plan.schedule == ScheduleSpec("step", 0.2, 0.5, 0.1)


def test_a_job_of_an_earlier_version_is_planned(store: Store, fill: Fill) -> None:
    """Its resolved spec lacks what came later."""
    plan, job, dataset = planned(store, fill, network={"hidden": [4]})
    spec = copy.deepcopy(job.spec)
    for section, names in (
        ("network", ("input_noise", "input_dropout", "layer_norm")),
        ("optimizer", ("l1", "max_norm", "reference_batch_size")),
        ("distribution", ("outer",)),
    ):
        for name in names:
            del spec[section][name]
    old = training_plan(replace(job, spec=spec), dataset, SETTINGS)
    assert replace(old, spec=job.spec) == plan
