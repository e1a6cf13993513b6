"""A job spec and a dataset's columns -> the resolved spec and the plan: pure, so that submission and dry run agree.

Every `auto` but the number of workers is replaced by what spec and dataset decide, never by the cluster.
"""

import difflib
import math
from dataclasses import dataclass, replace
from typing import Any

from core.network import NetworkSpec, summary
from core.optimizers import OptimizerSpec, make_optimizer
from service.errors import SpecError
from service.fields import AUTO
from service.schemas import EarlyStopping, Exclude, JobSpec
from worker.splits import split_sizes

CLASSIFICATION, REGRESSION = "classification", "regression"
MOST_CLASS_VALUES = 20  # integers of at most so many values are classes, unless the spec says otherwise
MOST_CATEGORIES = 10_000
LEARNING_RATES = {"adam": 1e-3, "adamw": 1e-3, "rmsprop": 1e-3, "adagrad": 1e-2, "sgd": 0.1}
MOMENTUM_LEARNING_RATE = 0.02
STEPS_WANTED, ROWS_A_BATCH, SHARD_ROWS = 2000, 50, 64
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Resolved:
    """The spec with every `auto` replaced, the plan that a dry run answers with, and the model's name, if any."""

    spec: dict[str, Any]
    plan: dict[str, Any]
    model_name: str | None


@dataclass(frozen=True)
class Limits:
    """What the service allows a job."""

    max_parameters: int
    worker_slots: int


def resolve(spec: JobSpec, dataset: dict[str, Any], limits: Limits) -> Resolved:
    """Resolve `spec` against a ready dataset: `id`, `name`, `rows`, `columns` as dataset.json has them.

    Raises SpecError naming the field.
    """
    columns = {column["name"]: column for column in dataset["columns"]}
    targets = _targets(spec, columns)
    features = _features(spec, columns, targets)
    _check_weights(spec, columns)
    task = _task(spec, [columns[name] for name in targets])
    loss = _loss(spec, task)
    outputs = _class_count(columns[targets[0]]) if task == CLASSIFICATION else len(targets)
    usable = dataset["rows"] - max(columns[name]["missing"] for name in targets)
    _check_split(spec, columns, task)
    train, validation, test = split_sizes(usable, spec.split.validation, spec.split.test)
    if train < 1:
        raise SpecError("split", f"no row is left to train on: {usable} rows have a target")
    batch_size = _batch_size(spec, train)
    steps_per_epoch = math.ceil(train / batch_size)
    epochs = _epochs(spec, steps_per_epoch)
    shards = max(1, min(batch_size // SHARD_ROWS, 8)) if spec.distribution.shards == AUTO else spec.distribution.shards
    if int(shards) > batch_size:
        raise SpecError("distribution.shards", f"{shards} shards cannot share a batch of {batch_size} rows")
    width = sum(columns[name]["distinct"] if columns[name]["type"] == "text" else 1 for name in features)
    network = NetworkSpec(width, outputs, tuple(spec.network.hidden), spec.network.activation, loss=loss)
    layers = summary(network)
    parameters = sum(layer["parameters"] for layer in layers)
    if parameters > limits.max_parameters:
        raise SpecError("network.hidden", f"{parameters:,} parameters; at most {limits.max_parameters:,} are allowed")
    workers = spec.distribution.workers
    if workers != AUTO and int(workers) > limits.worker_slots:
        message = f"{workers} workers; this service has {limits.worker_slots} worker slots (FALLLINE_WORKER_SLOTS)"
        raise SpecError("distribution.workers", message)
    optimizer, schedule = _optimizer(spec), _schedule(spec)
    steps = epochs * steps_per_epoch
    name = spec.name or dataset["name"]
    model = None if spec.model is None else {"name": spec.model.name or name, "deploy": spec.model.deploy}
    resolved = spec.model_dump() | {
        "dataset": dataset["id"],
        "name": name,
        "target": targets if isinstance(spec.target, list) else targets[0],
        "features": features,
        "task": task,
        "loss": loss,
        "optimizer": optimizer.to_json(),
        "schedule": schedule,
        "model": model,
        "experiment": spec.experiment or (model["name"] if model else name),
    }
    initializer = spec.network.initializer
    resolved["network"] |= {"initializer": _initializer(spec) if initializer == AUTO else initializer}
    resolved["training"] |= {
        "epochs": epochs,
        "batch_size": batch_size,
        "early_stopping": _early_stopping(spec, epochs, validation),
        "log_every_steps": math.ceil(steps / 1000)
        if spec.training.log_every_steps == AUTO
        else spec.training.log_every_steps,
    }
    resolved["distribution"] |= {"shards": shards}
    rows_a_shard = math.ceil(batch_size / int(shards))
    vectors = 3 + 2 * make_optimizer(optimizer).state_vectors
    plan = {
        "object": "plan",
        "spec": resolved,
        "parameters": parameters,
        "layers": layers,
        "steps": steps,
        "rows": {"train": train, "validation": validation, "test": test},
        "flops_per_step": batch_size * sum(layer["flops"] for layer in layers),
        "memory_bytes": {
            "worker": _FLOAT_BYTES * rows_a_shard * (2 * sum(layer["shape"][1] for layer in layers) + width),
            "shared": _FLOAT_BYTES * parameters * (int(shards) + vectors),
        },
        "useful_workers": shards,
    }
    return Resolved(resolved, plan, model["name"] if model else None)


def _known(param: str, name: str, columns: dict[str, Any]) -> None:
    if name not in columns:
        near = difflib.get_close_matches(name, columns, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {_listed(list(columns))}"
        raise SpecError(param, f"the dataset has no column {name!r}; {hint}", details={"columns": list(columns)[:100]})


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _targets(spec: JobSpec, columns: dict[str, Any]) -> list[str]:
    if isinstance(spec.target, str):
        _known("target", spec.target, columns)
        return [spec.target]
    for number, name in enumerate(spec.target):
        _known(f"target[{number}]", name, columns)
        if name in spec.target[:number]:
            raise SpecError(f"target[{number}]", f"{name!r} is named twice")
    return spec.target


def _features(spec: JobSpec, columns: dict[str, Any], targets: list[str]) -> list[str]:
    reserved = {*targets, spec.weight_column}
    if isinstance(spec.features, list):
        for number, name in enumerate(spec.features):
            param = f"features[{number}]"
            _known(param, name, columns)
            if name in reserved:
                raise SpecError(param, f"{name!r} is the target or the weight, and so cannot be a feature")
            if name in spec.features[:number]:
                raise SpecError(param, f"{name!r} is named twice")
        features = spec.features
    else:
        excluded = spec.features.exclude if isinstance(spec.features, Exclude) else []
        for number, name in enumerate(excluded):
            _known(f"features.exclude[{number}]", name, columns)
        features = [name for name in columns if name not in reserved and name not in excluded]
    if not features:
        raise SpecError("features", "no column is left to be a feature")
    for name in features:
        if columns[name]["type"] == "text" and columns[name]["distinct"] > MOST_CATEGORIES:
            count = columns[name]["distinct"]
            message = f"{name!r} has {count:,} different texts, too many for one_hot (at most {MOST_CATEGORIES:,})"
            raise SpecError("features", f"{message}: exclude it, with features: {{exclude: [{name}]}}")
    return features


def _check_weights(spec: JobSpec, columns: dict[str, Any]) -> None:
    if spec.weight_column is None:
        return
    _known("weight_column", spec.weight_column, columns)
    column = columns[spec.weight_column]
    if column["type"] == "text":
        raise SpecError("weight_column", f"{spec.weight_column!r} holds text; weights are numbers of at least 0")
    if column["missing"]:
        raise SpecError("weight_column", f"{spec.weight_column!r} is empty in {column['missing']} rows; each needs one")
    if column.get("minimum", 0) < 0:
        raise SpecError("weight_column", f"{spec.weight_column!r} holds {column['minimum']}; a weight is at least 0")


def _task(spec: JobSpec, targets: list[dict[str, Any]]) -> str:
    first = targets[0]
    if spec.task == AUTO:
        few = first["type"] == "integer" and first["distinct"] <= MOST_CLASS_VALUES
        task = CLASSIFICATION if first["type"] in ("text", "boolean") or few else REGRESSION
        task = REGRESSION if len(targets) > 1 else task
    else:
        task = spec.task
    if task == CLASSIFICATION and len(targets) > 1:
        raise SpecError("target", "classification has one target; several are not supported yet")
    if task == REGRESSION:
        for number, column in enumerate(targets):
            param = f"target[{number}]" if isinstance(spec.target, list) else "target"
            if column["type"] == "text":
                raise SpecError(param, f"{column['name']!r} holds text; a target of regression is a number")
    if any(column["missing"] == column.get("rows") for column in targets):
        raise SpecError("target", "the target is empty in every row")
    return task


def _class_count(column: dict[str, Any]) -> int:
    count = int(column["distinct"])
    if count < 2:
        raise SpecError("target", f"{column['name']!r} has {count} different values; classification needs at least 2")
    if column["type"] != "text" and "values" not in column:
        raise SpecError("target", f"{column['name']!r} has {count:,} different values, too many to be classes")
    return count


def _loss(spec: JobSpec, task: str) -> str:
    fitting = "cross_entropy" if task == CLASSIFICATION else "squared_error"
    if spec.loss not in (AUTO, fitting):
        raise SpecError("loss", f"{spec.loss} does not suit {task}; expected {fitting}")
    return fitting


def _check_split(spec: JobSpec, columns: dict[str, Any], task: str) -> None:
    split = spec.split
    if split.validation + split.test >= 1:
        raise SpecError("split", f"validation {split.validation:g} and test {split.test:g} leave nothing to train on")
    if split.by == "time":
        if split.column is None:
            raise SpecError("split.column", "a split by time needs the column that orders the rows")
        _known("split.column", split.column, columns)
        if columns[split.column]["missing"]:
            raise SpecError("split.column", f"{split.column!r} is empty in {columns[split.column]['missing']} rows")
    elif split.column is not None:
        raise SpecError("split.column", f"a split by {split.by} takes no column")
    if split.by == "stratified" and task != CLASSIFICATION:
        raise SpecError("split.by", "stratified suits classification; a regression has no classes")


def _batch_size(spec: JobSpec, train: int) -> int:
    """Auto: the power of two nearest to a fiftieth of the rows, within 32..256, and at most all rows."""
    if spec.training.batch_size == AUTO:
        nearest = 1 << round(math.log2(max(train / ROWS_A_BATCH, 1)))
        return min(max(32, min(256, nearest)), train)
    if int(spec.training.batch_size) > train:
        message = f"{spec.training.batch_size} rows a step, but only {train} train (the rest is validation and test)"
        raise SpecError("training.batch_size", message)
    return int(spec.training.batch_size)


def _epochs(spec: JobSpec, steps_per_epoch: int) -> int:
    if spec.training.epochs == AUTO:
        return max(20, min(200, math.ceil(STEPS_WANTED / steps_per_epoch)))
    return int(spec.training.epochs)


def _early_stopping(spec: JobSpec, epochs: int, validation: int) -> dict[str, Any] | None:
    wanted = spec.training.early_stopping
    if isinstance(wanted, EarlyStopping):
        if validation == 0:
            raise SpecError("training.early_stopping", "needs validation rows: set split.validation above 0")
        return {"patience": wanted.patience}
    return {"patience": max(10, epochs // 5)} if wanted == AUTO and validation else None


def _optimizer(spec: JobSpec) -> OptimizerSpec:
    given = spec.optimizer
    name = "adamw" if given.name == AUTO else given.name
    rate = MOMENTUM_LEARNING_RATE if name == "sgd" and given.momentum else LEARNING_RATES[name]
    if given.momentum and name != "sgd":
        raise SpecError("optimizer.momentum", f"{name} takes no momentum; it is sgd's")
    if given.nesterov and not given.momentum:
        raise SpecError("optimizer.nesterov", "needs a momentum above 0")
    found = OptimizerSpec(
        name=name,
        learning_rate=given.learning_rate or rate,
        momentum=given.momentum,
        nesterov=given.nesterov,
        weight_decay=(0.01 if name == "adamw" else 0.0) if given.weight_decay is None else given.weight_decay,
        beta1=given.beta1,
        beta2=given.beta2,
        epsilon=given.epsilon,
        clip_norm=given.clip_norm,
    )
    unset = "clip_norm" not in given.model_fields_set
    return replace(found, clip_norm=1.0) if given.name == AUTO and unset else found


def _schedule(spec: JobSpec) -> dict[str, Any]:
    if spec.schedule.name == AUTO:
        warmup = spec.schedule.warmup if "warmup" in spec.schedule.model_fields_set else 0.05
        return {"name": "cosine", "warmup": warmup}
    return spec.schedule.model_dump()


def _initializer(spec: JobSpec) -> str:
    return "he" if spec.network.activation == "relu" else "glorot"
