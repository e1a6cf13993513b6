"""What a job spec makes of a dataset's columns: targets, features, task, loss, the network's ends, the splits' rows.

Pure; every refusal is a SpecError that names the field.
"""

import difflib
from dataclasses import dataclass
from typing import Any

from core.targets import class_key
from service.errors import SpecError
from service.fields import AUTO
from service.schemas import Exclude, JobSpec
from worker.splits import split_sizes

CLASSIFICATION, REGRESSION = "classification", "regression"
MOST_CLASS_VALUES = 20  # integers of at most so many values are classes, unless the spec says otherwise
MOST_CATEGORIES = 10_000
LOSSES_OF = {  # the first is the default
    CLASSIFICATION: ("cross_entropy", "binary_cross_entropy"),
    REGRESSION: ("squared_error", "huber"),
}


@dataclass(frozen=True)
class ResolvedData:
    """`width` features go in, `outputs` come out; `rows` have a target, and are shared out among the splits."""

    targets: list[str]
    features: list[str]
    task: str
    loss: str | dict[str, Any]
    class_weight: str | dict[str, float] | None
    width: int
    outputs: int
    rows: int
    train: int
    validation: int
    test: int


def resolve_data(spec: JobSpec, dataset: dict[str, Any]) -> ResolvedData:
    """Of a ready dataset: `rows`, and `columns` as dataset.json has them."""
    columns = {column["name"]: column for column in dataset["columns"]}
    targets = _targets(spec, columns, dataset["rows"])
    features = _features(spec, columns, targets)
    _check_weights(spec, columns)
    task = _task(spec, [columns[name] for name in targets])
    outputs = _class_count(columns[targets[0]]) if task == CLASSIFICATION else len(targets)
    loss = _loss(spec, task, outputs)
    class_weight = _class_weight(spec, columns[targets[0]], task)
    _check_split(spec, columns, task)
    rows = dataset["rows"] - max(columns[name]["missing"] for name in targets)
    train, validation, test = split_sizes(rows, spec.split.validation, spec.split.test)
    if train < 1:
        raise SpecError("split", f"no row is left to train on: {rows} rows have a target")
    width = sum(columns[name]["distinct"] if columns[name]["type"] == "text" else 1 for name in features)
    return ResolvedData(targets, features, task, loss, class_weight, width, outputs, rows, train, validation, test)


def _known(param: str, name: str, columns: dict[str, Any]) -> None:
    if name not in columns:
        near = difflib.get_close_matches(name, columns, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {_listed(list(columns))}"
        raise SpecError(param, f"the dataset has no column {name!r}; {hint}", details={"columns": list(columns)[:100]})


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _targets(spec: JobSpec, columns: dict[str, Any], rows: int) -> list[str]:
    targets = spec.target if isinstance(spec.target, list) else [spec.target]
    for number, name in enumerate(targets):
        param = _target_param(spec, number)
        _known(param, name, columns)
        if name in targets[:number]:
            raise SpecError(param, f"{name!r} is named twice")
        if columns[name]["missing"] == rows:
            raise SpecError(param, f"{name!r} is empty in every row")
    return targets


def _target_param(spec: JobSpec, number: int) -> str:
    return f"target[{number}]" if isinstance(spec.target, list) else "target"


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
    if not any(columns[name]["distinct"] for name in features):
        raise SpecError("features", f"nothing to learn from: {_listed(features)} is empty in every row")
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
            if column["type"] == "text":
                param = _target_param(spec, number)
                raise SpecError(param, f"{column['name']!r} holds text; a target of regression is a number")
    return task


def _class_count(column: dict[str, Any]) -> int:
    count = int(column["distinct"])
    if count < 2:
        raise SpecError("target", f"{column['name']!r} has {count} different values; classification needs at least 2")
    if column["type"] != "text" and "values" not in column:
        raise SpecError("target", f"{column['name']!r} has {count:,} different values, too many to be classes")
    return count


def _loss(spec: JobSpec, task: str, outputs: int) -> str | dict[str, Any]:
    fitting = LOSSES_OF[task]
    name = loss_name(spec.loss)
    if name == AUTO:
        return fitting[0]
    if name not in fitting:
        raise SpecError("loss", f"{name} does not suit {task}; expected {' or '.join(fitting)}")
    if name == "binary_cross_entropy" and outputs != 2:
        raise SpecError("loss", f"{name} takes 2 classes, and the target has {outputs}; expected {fitting[0]}")
    return spec.loss


def loss_name(loss: str | dict[str, Any]) -> str:
    """Of a loss as the spec has it: a name, or a mapping with its numbers."""
    return str(loss["name"]) if isinstance(loss, dict) else loss


def _class_weight(spec: JobSpec, column: dict[str, Any], task: str) -> str | dict[str, float] | None:
    """By classes as JSON writes them as keys. A target of very many classes is checked when its rows are read."""
    given, param = spec.training.class_weight, "training.class_weight"
    if given is None:
        return None
    if task != CLASSIFICATION:
        raise SpecError(param, "a regression has no classes; expected null")
    if isinstance(given, str) or "values" not in column:
        return given
    known = {class_key(value): value for value in column["values"]}
    found: dict[str, float] = {}
    for label, weight in given.items():
        key = label if label in known else _same_number(label, known)
        if key is None or key in found:
            problem = "is no class of" if key is None else "is given twice for"
            message = f"{label[:80]!r} {problem} {column['name']!r}, which has {_listed(list(known))}"
            raise SpecError(f"{param}.{label[:80]}", message)
        found[key] = weight
    return found


def _same_number(label: str, known: dict[str, Any]) -> str | None:
    """The key of the class that `label` writes in another way: 1 is 1.0."""
    try:
        number = float(label)
    except ValueError:
        return None
    return next((k for k, v in known.items() if not isinstance(v, str | bool) and v == number), None)


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
