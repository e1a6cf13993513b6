"""Columns -> float32 features and targets: fitted on the training rows, saved with the model.

A prediction row goes through the same encoder as a training row, so that they come out bit for bit alike.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .columns import COLUMN_TYPES, Column, Value
from .errors import SpecificationError
from .features import FeatureEncoder
from .records import RecordReader
from .specification import Specification, require_choice
from .targets import TargetEncoder

__all__ = ["Column", "Preprocessing", "PreprocessingSpec"]

_CHOICES = {
    "task": ("classification", "regression"),
    "numeric": ("standardize", "none"),
    "missing": ("mean", "error"),
    "categorical": ("one_hot",),
    "unseen": ("ignore", "error"),
}


@dataclass(frozen=True)
class PreprocessingSpec(Specification):
    """Which columns are features and targets, and how their values are treated."""

    features: tuple[str, ...]
    targets: tuple[str, ...]
    task: str
    numeric: str = "standardize"
    missing: str = "mean"
    categorical: str = "one_hot"
    unseen: str = "ignore"

    def __post_init__(self) -> None:
        for name in ("features", "targets"):
            columns = getattr(self, name)
            if not isinstance(columns, tuple) or not columns or not all(isinstance(column, str) for column in columns):
                raise SpecificationError(name, columns, "a list of at least one column name")
            if len(set(columns)) != len(columns):
                raise SpecificationError(name, columns, "each column once")
        if both := set(self.features) & set(self.targets):
            raise SpecificationError("features", min(both), "a column that is not a target")
        for name, choices in _CHOICES.items():
            require_choice(name, getattr(self, name), choices)
        if self.task == "classification" and len(self.targets) != 1:
            raise SpecificationError("targets", self.targets, "one column for a classification")


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """A fitted preprocessing. Immutable: threads may share it."""

    spec: PreprocessingSpec
    features: FeatureEncoder
    targets: TargetEncoder
    _records: RecordReader = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_records", RecordReader(self.features))

    @classmethod
    def fit(
        cls,
        spec: PreprocessingSpec,
        columns: Mapping[str, Column],
        rows: npt.NDArray[np.int64],
        classes: tuple[Value, ...] | None = None,
    ) -> "Preprocessing":
        """Fit on `rows` alone. `classes` are the whole dataset's, sorted, in its type (None: taken from the column).

        SpecificationError where columns and spec do not suit each other, DataError for a value that is not finite.
        """
        standardize = spec.numeric == "standardize"
        features = FeatureEncoder.fit(
            spec.features, columns, rows, standardize=standardize, missing=spec.missing, unseen=spec.unseen
        )
        if features.width == 0:
            raise SpecificationError("features", ", ".join(spec.features), "a column that holds values")
        return cls(spec, features, TargetEncoder.fit(spec.targets, spec.task, columns, rows, classes))

    @property
    def width(self) -> int:
        """The network's inputs."""
        return self.features.width

    @property
    def feature_names(self) -> tuple[str, ...]:
        """One name an input of the network: the feature's, or feature=category."""
        return self.features.output_names()

    @property
    def classes(self) -> tuple[Value, ...] | None:
        """Sorted, in the dataset's type; None for regression."""
        return self.targets.classes

    @property
    def target_means(self) -> npt.NDArray[np.float64] | None:
        """float64 (outputs,); None for classification."""
        return self.targets.means

    @property
    def target_scales(self) -> npt.NDArray[np.float64] | None:
        """float64 (outputs,): the user's units in one standardized unit; None for classification."""
        return self.targets.scales

    @property
    def outputs(self) -> int:
        """The network's output units."""
        return self.targets.outputs

    def transform(
        self, columns: Mapping[str, Column], rows: npt.NDArray[np.int64], out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """float32 (len(rows), width), into `out` if given. DataError where a value cannot be taken."""
        return self.features.transform(columns, rows, out)

    def transform_targets(
        self, columns: Mapping[str, Column], rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int32] | npt.NDArray[np.float32]:
        """int32 class numbers (n,), or float32 standardized values (n, outputs)."""
        return self.targets.transform(columns, rows)

    def transform_records(self, instances: Sequence[Mapping[str, Any] | Sequence[Any]]) -> npt.NDArray[np.float32]:
        """Prediction rows, by name or in the order of the features -> float32 (n, width). DataError names the place."""
        numbers, codes = self._records.read(instances)
        out = np.empty((len(instances), self.width), dtype=np.float32)
        self.features.encode(numbers, codes, out, range(len(instances)))
        return out

    def decode(self, outputs: npt.NDArray[Any], wanted: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """A network's outputs (n, outputs) -> one dict a row, in the dataset's types and units.

        `wanted` selects among label and probabilities, or value or values; SpecificationError for another name.
        """
        return self.targets.decode(outputs, None if wanted is None else tuple(wanted))

    def signature(self) -> dict[str, Any]:
        """What a prediction takes and gives. Every feature must be named; null will do where `nullable`."""
        types = zip(self.features.names, self.features.types, strict=True)
        nullable = self.spec.missing != "error"
        inputs = [{"name": name, "type": kind, "required": True, "nullable": nullable} for name, kind in types]
        kinds = {"label": self.targets.type, "value": "number"}
        outputs = [{"name": name, "type": kinds.get(name, "object")} for name in self.targets.output_names()]
        return {"inputs": inputs, "outputs": outputs}

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` takes back, bit for bit."""
        encoder, targets = self.features, self.targets
        numbers = iter(zip(encoder.fills.tolist(), encoder.offsets.tolist(), encoder.scales.tolist(), strict=True))
        categories = iter(encoder.categories)
        fitted: list[dict[str, Any]] = []
        for kind in encoder.types:
            if kind == "text":
                fitted.append({"type": kind, "categories": list(next(categories))})
            else:
                fitted.append({"type": kind, **dict(zip(("fill", "offset", "scale"), next(numbers), strict=True))})
        target: dict[str, Any] = {"type": targets.type}
        if targets.classes is not None:
            target["classes"] = list(targets.classes)
        else:
            assert targets.means is not None
            assert targets.scales is not None
            target |= {"means": targets.means.tolist(), "scales": targets.scales.tolist()}
        return {"spec": self.spec.to_json(), "features": fitted, "target": target}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of `to_json`; SpecificationError for anything that is not its result."""
        _check_fields(data, "preprocessing", {"spec", "features", "target"})
        if not isinstance(data["spec"], Mapping):
            raise SpecificationError("spec", data["spec"], "an object")
        spec = PreprocessingSpec.from_json(data["spec"])
        return cls(spec, _features_from_json(spec, data["features"]), _targets_from_json(spec, data["target"]))


def _features_from_json(spec: PreprocessingSpec, data: Any) -> FeatureEncoder:
    if not isinstance(data, list) or len(data) != len(spec.features):
        raise SpecificationError("features", data, f"a list of {len(spec.features)}")
    types, numbers, categories = [], [], []
    for name, entry in zip(spec.features, data, strict=True):
        kind = entry.get("type") if isinstance(entry, Mapping) else None
        if kind not in COLUMN_TYPES:
            raise SpecificationError(name, kind, f"a type among {', '.join(COLUMN_TYPES)}")
        types.append(kind)
        if kind == "text":
            _check_fields(entry, name, {"type", "categories"})
            values = entry["categories"]
            if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
                raise SpecificationError(name, values, "a list of categories")
            if values != sorted(set(values)):
                raise SpecificationError(name, values, "sorted categories, each once")
            categories.append(tuple(values))
        else:
            _check_fields(entry, name, {"type", "fill", "offset", "scale"})
            numbers.append(_numbers(name, [entry["fill"], entry["offset"], entry["scale"]], 3))
            if entry["scale"] <= 0:
                raise SpecificationError(name, entry["scale"], "a scale above 0")
    table = np.array(numbers, dtype=np.float64).reshape(-1, 3)
    fills, offsets, scales = (np.ascontiguousarray(table[:, k]) for k in range(3))
    return FeatureEncoder(
        spec.features, tuple(types), fills, offsets, scales, tuple(categories), spec.missing, spec.unseen
    )


def _targets_from_json(spec: PreprocessingSpec, data: Any) -> TargetEncoder:
    if spec.task == "classification":
        _check_fields(data, "target", {"type", "classes"})
        expected: dict[str, type] = {"integer": int, "number": float, "boolean": bool, "text": str}
        kind, classes = data["type"], data["classes"]
        if kind not in expected:
            raise SpecificationError("target", kind, f"a type among {', '.join(COLUMN_TYPES)}")
        if not isinstance(classes, list) or len(classes) < 2 or not all(type(c) is expected[kind] for c in classes):
            raise SpecificationError("target", classes, f"a list of at least two classes of type {kind}")
        if classes != sorted(set(classes)):
            raise SpecificationError("target", classes, "sorted classes, each once")
        return TargetEncoder(spec.targets, kind, tuple(classes), None, None)
    _check_fields(data, "target", {"type", "means", "scales"})
    means = _numbers("target", data["means"], len(spec.targets))
    scales = _numbers("target", data["scales"], len(spec.targets))
    if min(scales) <= 0:
        raise SpecificationError("target", scales, "scales above 0")
    return TargetEncoder(spec.targets, "number", None, np.array(means), np.array(scales))


def _check_fields(data: Any, what: str, known: set[str]) -> None:
    if not isinstance(data, Mapping):
        raise SpecificationError(what, data, "an object")
    for name in sorted(set(data) - known):
        raise SpecificationError(str(name), data[name], "no such field")
    for name in sorted(known - set(data)):
        raise SpecificationError(name, None, "a value: the field is missing")


def _numbers(name: str, values: Any, count: int) -> list[float]:
    if not isinstance(values, list) or len(values) != count:
        raise SpecificationError(name, values, f"a list of {count} numbers")
    for value in values:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise SpecificationError(name, value, "a finite number")
    return [float(value) for value in values]
