"""The job spec, field by field: defaults as the contract has them, one message about the first thing that is wrong."""

from typing import Any

import pytest
from pydantic import ValidationError

from core.activations import ACTIVATIONS
from core.losses import LOSSES
from service.bodies import validated
from service.errors import SpecError
from service.schemas import DeployRequest, JobSpec, first_problem

LEAST = {"dataset": "digits", "target": "label"}


def spec(**fields: Any) -> JobSpec:
    return validated(JobSpec, LEAST | fields)


def nested(path: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} of "a.b"."""
    for part in reversed(path.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def test_dataset_and_target_suffice_and_the_rest_is_the_contracts() -> None:
    assert spec().model_dump() == {
        **LEAST,
        "name": None,
        "features": "all",
        "weight_column": None,
        "task": "auto",
        "split": {"validation": 0.2, "test": 0.0, "by": "random", "column": None, "seed": 0},
        "validation_dataset": None,
        "test_dataset": None,
        "preprocessing": {"numeric": "standardize", "missing": "mean", "categorical": "one_hot", "unseen": "ignore"},
        "network": {
            "hidden": [256, 128],
            "activation": "auto",
            "input_noise": 0.0,
            "input_dropout": 0.0,
            "dropout": 0.0,
            "layer_norm": False,
            "initializer": "auto",
            "layers": None,
            "graph": None,
        },
        "loss": "auto",
        "optimizer": {
            "name": "auto",
            "learning_rate": None,
            "momentum": 0.0,
            "nesterov": False,
            "weight_decay": None,
            "beta1": 0.9,
            "beta2": 0.999,
            "epsilon": 1e-8,
            "clip_norm": None,
            "l1": 0.0,
            "max_norm": None,
            "reference_batch_size": None,
        },
        "schedule": {"name": "auto", "warmup": 0.0, "factor": None, "every": None},
        "training": {
            "epochs": "auto",
            "batch_size": "auto",
            "seed": 0,
            "precision": "float32",
            "early_stopping": "auto",
            "max_seconds": None,
            "checkpoint_every_seconds": 30,
            "log_every_steps": "auto",
            "class_weight": None,
            "warm_start": None,
        },
        "distribution": {
            "workers": "auto",
            "shards": "auto",
            "mode": "sync",
            "local_steps": 1,
            "outer": "average",
            "threads_per_worker": 1,
            "gradient_precision": "full",
        },
        "model": {"name": None, "deploy": "never"},
        "priority": 0,
        "experiment": None,
        "metadata": {},
    }


def test_the_short_forms() -> None:
    assert spec(optimizer="sgd").optimizer.name == "sgd"
    assert spec(schedule="constant").schedule.name == "constant"
    assert spec(model=None).model is None
    assert spec(target=["a", "b"]).target == ["a", "b"]
    assert spec(network={"hidden": []}).network.hidden == []
    assert spec(training={"epochs": 5.0}).training.epochs == 5
    assert spec(optimizer={"learning_rate": 1}).optimizer.learning_rate == 1.0
    assert spec(training={"early_stopping": None}).training.early_stopping is None


HUGE = 10**400
WRONG: list[tuple[str, Any]] = [
    ("dataset", 5),
    ("dataset", ""),
    ("dataset", "a\nb"),
    ("target", 5),
    ("target", []),
    ("target", ["a", 1]),
    ("name", "a/b"),
    ("name", "a" * 129),
    ("features", "some"),
    ("features", []),
    ("features.exclud", ["a"]),
    ("features.exclude", "a"),
    ("weight_column", 1),
    ("task", "clustering"),
    ("split", 0.2),
    ("split.validation", 1.0),
    ("split.validation", -0.1),
    ("split.validation", float("nan")),
    ("split.validation", HUGE),
    ("split.validation", "0.2"),
    ("split.test", True),
    ("split.by", "luck"),
    ("split.seed", -1),
    ("split.seed", 2**32),
    ("preprocessing.numeric", "log"),
    ("preprocessing.missing", None),
    ("network", 5),
    ("network.hidden", 5),
    ("network.hidden", [1] * 101),
    ("network.activation", "sine"),
    ("network.initializer", 1),
    ("network.widths", [1]),
    ("network.activation", ["relu"]),
    ("network.activation", {1: 2, "name": "elu"}),
    ("network.activation.name", "sine"),
    ("network.input_noise", -0.1),
    ("network.input_dropout", 0.9995),
    ("network.dropout", 0.9995),
    ("network.dropout", -0.1),
    ("network.dropout", None),
    ("network.layer_norm", 1),
    ("network.layer_norm", None),
    ("network.initializer", "zeros"),
    ("network.layers", 5),
    ("network.layers", []),
    ("network.layers", [5]),
    ("network.layers", [{"units": 1}] * 101),
    ("network.graph", {}),
    ("network.graph", [{"name": "a", "inputs": ["features"], "units": 1}] * 201),
    ("loss", "absolute"),
    ("loss", None),
    ("loss.name", "absolute"),
    ("optimizer", "lion"),
    ("optimizer.name", "lion"),
    ("optimizer.learning_rate", 0),
    ("optimizer.learning_rate", float("inf")),
    ("optimizer.learning_rate", HUGE),
    ("optimizer.learning_rate", "1e-3"),
    ("optimizer.momentum", 1.0),
    ("optimizer.nesterov", 1),
    ("optimizer.epsilon", 0.9e-16),
    ("optimizer.epsilon", None),
    ("optimizer.clip_norm", 0.0),
    ("optimizer.l1", -1e-3),
    ("optimizer.l1", None),
    ("optimizer.max_norm", 0.0),
    ("optimizer.reference_batch_size", 0),
    ("optimizer.reference_batch_size", 1.5),
    ("schedule", "sawtooth"),
    ("schedule.warmup", 1.5),
    ("schedule.factor", 0.0),
    ("schedule.factor", 1.0),
    ("schedule.every", 1.0),
    ("training.epochs", 0),
    ("training.epochs", 1.5),
    ("training.epochs", True),
    ("training.epochs", "many"),
    ("training.epochs", float("nan")),
    ("training.batch_size", HUGE),
    ("training.early_stopping", 5),
    ("training.early_stopping.patience", 0),
    ("training.early_stopping.patients", 1),
    ("training.max_seconds", -1),
    ("training.checkpoint_every_seconds", 0),
    ("training.checkpoint_every_seconds", 86_401),
    ("training.checkpoint_every_seconds", 1.5),
    ("training.checkpoint_every_seconds", "auto"),
    ("training.checkpoint_every_seconds", None),
    ("training.precision", "double"),
    ("training.class_weight", "even"),
    ("training.class_weight", {}),
    ("training.class_weight", {None: 1.0}),
    ("training.class_weight", {1: 1.0, "1": 2.0}),
    ("training.class_weight.a", 0.0),
    ("training.class_weight.a", True),
    ("training.class_weight.a", 1e7),
    ("training.class_weight.a", "2"),
    ("training.class_weight.a", float("nan")),
    ("training.class_weight.a", HUGE),
    ("distribution.workers", 0),
    ("distribution.workers", "two"),
    ("distribution.workers", True),
    ("distribution.workers", None),
    ("distribution.workers", 2.5),
    ("distribution.workers", HUGE),
    ("distribution.workers", [1, 2]),
    ("distribution.workers", {"min": 3, "max": 2}),
    ("distribution.shards", 4097),
    ("distribution.threads_per_worker", None),
    ("distribution.mode", "async"),
    ("distribution.local_steps", 0),
    ("distribution.local_steps", 10_001),
    ("distribution.outer", "adam"),
    ("distribution.gradient_precision", "float16"),
    ("model", "digits"),
    ("model.name", "../x"),
    ("model.deploy", "sometimes"),
    ("experiment", ""),
    ("metadata", {"a": 1}),
    ("metadata", {"": "a"}),
    ("metadata", {"team/vision": "a"}),
    ("metadata", {"really?": "a"}),
    ("metadata", {"..": "a"}),
    ("metadata", {"a" * 65: "a"}),
    ("metadata", {str(k): "a" for k in range(17)}),
    ("metadata", ["a"]),
    ("nonsense", 1),
]


@pytest.mark.parametrize(("path", "value"), WRONG, ids=lambda part: f"{part!r:.30}")
def test_what_is_wrong_is_named_by_its_path(path: str, value: Any) -> None:
    with pytest.raises(SpecError) as refusal:
        spec(**nested(path, value))
    assert (refusal.value.code, refusal.value.status) == ("invalid_spec", 422)
    assert (refusal.value.param or "").split("[")[0] == path or path == "optimizer" or path == "schedule"
    assert refusal.value.message.startswith(refusal.value.param or "?")
    assert "\n" not in refusal.value.message
    assert len(refusal.value.message) < 400


def test_a_range_of_workers() -> None:
    assert spec(distribution={"workers": {"min": 1, "max": 3}}).model_dump()["distribution"]["workers"] == {
        "min": 1,
        "max": 3,
    }
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("max", {"min": 1}),
        ("min", {"min": 0, "max": 2}),
        ("most", {"min": 1, "max": 2, "most": 3}),
    ]
    for field, value in wrong:
        with pytest.raises(SpecError) as refusal:
            spec(distribution={"workers": value})
        assert refusal.value.param == f"distribution.workers.{field}"


def test_an_element_of_a_list_is_named_by_its_number() -> None:
    for hidden in ([4, 0], [4, "8"], [4, 2.5], [4, True], [4, 10**5000]):
        with pytest.raises(SpecError) as refusal:
            spec(network={"hidden": hidden})
        assert refusal.value.param == "network.hidden[1]"


IN_LISTS: list[tuple[str, Any]] = [
    ("network.layers[1]", {"layers": [{"units": 5}, 5]}),
    ("network.layers[1].units", {"layers": [{"units": 5}, {"activation": "relu"}]}),
    ("network.layers[0].units", {"layers": [{"units": 0}]}),
    ("network.layers[0].width", {"layers": [{"units": 5, "width": 5}]}),
    ("network.layers[0].dropout", {"layers": [{"units": 5, "dropout": 0.9995}]}),
    ("network.layers[0].layer_norm", {"layers": [{"units": 5, "layer_norm": "yes"}]}),
    ("network.layers[0].initializer", {"layers": [{"units": 5, "initializer": "zeros"}]}),
    ("network.layers[0].activation", {"layers": [{"units": 5, "activation": "auto"}]}),
    (
        "network.layers[1].activation.negative_slope",
        {"layers": [{"units": 5}, {"units": 5, "activation": {"name": "leaky_relu", "negative_slope": 1.0}}]},
    ),
    ("network.activation.alpha", {"activation": {"name": "elu", "alpha": 0}}),
    ("network.activation.alpha", {"activation": {"name": "elu", "alpha": HUGE}}),
    ("network.activation.alpha", {"activation": {"name": "elu", "alpha": True}}),
    ("network.activation.beta", {"activation": {"name": "softplus", "beta": float("inf")}}),
    ("network.activation.beta", {"activation": {"name": "elu", "beta": 1.0}}),
    ("network.graph[0].inputs", {"graph": [{"name": "a", "units": 5}]}),
    ("network.graph[0].inputs", {"graph": [{"name": "a", "inputs": "features", "units": 5}]}),
    ("network.graph[0].inputs", {"graph": [{"name": "a", "inputs": ["features"] * 101}]}),
    ("network.graph[0].inputs[0]", {"graph": [{"name": "a", "inputs": [1], "units": 5}]}),
    ("network.graph[0].operation", {"graph": [{"name": "a", "inputs": ["features"], "operation": "max"}]}),
]


@pytest.mark.parametrize(("path", "network"), IN_LISTS, ids=lambda part: f"{part!r:.60}")
def test_what_is_wrong_inside_a_network_is_named_by_its_place(path: str, network: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as refusal:
        spec(network=network)
    assert (refusal.value.param, refusal.value.code) == (path, "invalid_spec")
    assert refusal.value.message.startswith(path)
    assert len(refusal.value.message) < 400


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_of_the_engine_is_taken_by_name_or_with_its_numbers(name: str) -> None:
    assert spec(network={"activation": name}).network.activation == name
    assert spec(network={"activation": {"name": name}}).network.activation == name
    for number in ("negative_slope", "alpha", "beta"):
        if number in getattr(ACTIVATIONS[name], "__dataclass_fields__", {}):
            given = {"name": name, number: 0.5}
            assert spec(network={"layers": [{"units": 1, "activation": given}]}).network.layers[0].activation == given


def test_a_loss_is_taken_by_name_or_with_its_number() -> None:
    for name in LOSSES:
        assert spec(loss=name).loss == spec(loss={"name": name}).loss == name
    assert spec(loss={"name": "huber", "delta": 2}).loss == {"name": "huber", "delta": 2.0}
    with pytest.raises(SpecError) as refusal:
        spec(loss={"name": "huber", "delta": 0})
    assert (refusal.value.param, "above 0" in refusal.value.message) == ("loss.delta", True)


def test_the_labels_of_class_weights_are_texts() -> None:
    """YAML has numbers and booleans as keys; in JSON they are texts."""
    assert spec(training={"class_weight": {1: 2, "x": 0.5}}).training.class_weight == {"1": 2.0, "x": 0.5}
    assert spec(training={"class_weight": {True: 3}}).training.class_weight == {"true": 3.0}


@pytest.mark.parametrize("field", ["dataset", "target"])
def test_what_is_absent_is_named(field: str) -> None:
    with pytest.raises(SpecError) as refusal:
        validated(JobSpec, {key: value for key, value in LEAST.items() if key != field})
    assert (refusal.value.param, refusal.value.message) == (field, f"{field} is required")


LATER: list[tuple[str, Any]] = [
    ("split.by", "group"),
    ("validation_dataset", "ds_1"),
    ("test_dataset", "ds_1"),
    ("training.precision", "float16"),
    ("training.precision", "bfloat16"),
]


@pytest.mark.parametrize(("path", "value"), LATER)
def test_what_a_later_part_brings_is_refused_as_such(path: str, value: Any) -> None:
    with pytest.raises(SpecError) as refusal:
        spec(**nested(path, value))
    assert (refusal.value.code, refusal.value.param) == ("not_supported_yet", path)
    assert refusal.value.message.endswith("is not supported yet")


def test_the_default_of_what_a_later_part_brings_is_no_wish() -> None:
    given = spec(validation_dataset=None, training={"warm_start": None})
    assert given == spec()


@pytest.mark.parametrize(
    "value",
    [
        {"job": "job_1"},
        {"job": "job_1", "step": 400},
        {"model": "digits"},
        {"model": "digits", "version": 3},
        {"model": "digits", "alias": "production"},
    ],
)
def test_a_job_begins_with_the_weights_of_a_job_or_a_version(value: dict[str, Any]) -> None:
    found = spec(training={"warm_start": value}).training.warm_start
    assert found is not None
    assert found.model_dump(exclude_none=True) == value


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ("job_1", "training.warm_start"),
        ({}, "training.warm_start"),
        ({"step": 4}, "training.warm_start"),
        ({"job": "job_1", "model": "digits"}, "training.warm_start"),
        ({"job": "job_1", "version": 1}, "training.warm_start"),
        ({"job": "job_1", "alias": "production"}, "training.warm_start"),
        ({"model": "digits", "step": 4}, "training.warm_start"),
        ({"model": "digits", "version": 1, "alias": "production"}, "training.warm_start"),
        ({"job": "job_1", "step": 0}, "training.warm_start.step"),
        ({"model": "digits", "version": "1"}, "training.warm_start.version"),
        ({"model": "digits", "alias": "staging"}, "training.warm_start.alias"),
        ({"job": "job_1", "epoch": 3}, "training.warm_start.epoch"),
    ],
)
def test_what_names_no_weights_is_refused_with_what_would(value: Any, param: str) -> None:
    with pytest.raises(SpecError) as refusal:
        spec(training={"warm_start": value})
    assert (refusal.value.code, refusal.value.param) == ("invalid_spec", param)
    if param == "training.warm_start":
        assert "{job: job_..., step: 400}" in refusal.value.message


@pytest.mark.parametrize("version", [0, -1, 1.5, "1", None, True, 2**60])
def test_a_version_to_deploy_is_a_whole_number(version: Any) -> None:
    with pytest.raises(SpecError) as refusal:
        validated(DeployRequest, {"version": version})
    assert refusal.value.param == "version"


def test_a_field_whose_name_is_no_text_is_refused() -> None:
    """YAML has such names."""
    for name in (1, None, 1.5, True, (1, 2)):
        with pytest.raises(ValidationError) as problems:
            JobSpec.model_validate({**LEAST, name: 1})
        param, code, _ = first_problem(problems.value)
        assert (isinstance(param, str), code) == (True, "invalid_spec")


def test_the_schema_can_be_published() -> None:
    schema = JobSpec.model_json_schema()
    assert schema["required"] == ["dataset", "target"]
    assert schema["additionalProperties"] is False
