"""Columns -> float32 features and targets: fitted on the training rows, saved with the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .columns import Column
from .errors import SpecificationError

__all__ = ["Column", "PreprocessingSpec"]

_CHOICES = {
    "task": ("classification", "regression"),
    "numeric": ("standardize", "none"),
    "missing": ("mean", "error"),
    "categorical": ("one_hot",),
    "unseen": ("ignore", "error"),
}


@dataclass(frozen=True)
class PreprocessingSpec:
    """Which columns are features and targets, and how their values are treated."""

    features: tuple[str, ...]
    targets: tuple[str, ...]
    task: str
    numeric: str = "standardize"
    missing: str = "mean"
    categorical: str = "one_hot"
    unseen: str = "ignore"

    def __post_init__(self) -> None:
        for field in ("features", "targets"):
            names = getattr(self, field)
            if not isinstance(names, tuple) or not names or not all(isinstance(name, str) for name in names):
                raise SpecificationError(field, names, "a tuple of at least one column name")
            if len(set(names)) != len(names):
                raise SpecificationError(field, names, "each column once")
        if both := set(self.features) & set(self.targets):
            raise SpecificationError("features", sorted(both)[0], "a column that is not a target")
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise SpecificationError(field, getattr(self, field), f"one of {', '.join(choices)}")
        if self.task == "classification" and len(self.targets) != 1:
            raise SpecificationError("targets", self.targets, "one column for a classification")

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` takes back."""
        lists = {"features": list(self.features), "targets": list(self.targets)}
        return lists | {field: getattr(self, field) for field in _CHOICES}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "PreprocessingSpec":
        """The inverse of `to_json`; SpecificationError for an unknown, missing or wrong field."""
        known = {"features", "targets", *_CHOICES}
        for field in sorted(set(data) ^ known):
            expected = "no such field" if field in data else "a value"
            raise SpecificationError(field, data.get(field), expected)
        for field in ("features", "targets"):
            if not isinstance(data[field], list | tuple):
                raise SpecificationError(field, data[field], "a list of column names")
        names = {"features": tuple(data["features"]), "targets": tuple(data["targets"])}
        return cls(**names, **{field: data[field] for field in _CHOICES})
