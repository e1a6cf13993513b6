"""Target columns -> what a loss compares with, and a network's outputs -> what a user reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .columns import Column, Value, distinct_values
from .errors import DataError, SpecificationError
from .features import mean_and_deviation

CLASSIFICATION_OUTPUTS = ("label", "probabilities")


@dataclass(frozen=True, eq=False)
class TargetEncoder:
    """Classification: `classes`, sorted, in the dataset's type. Regression: `means`, `scales` float64 (targets,)."""

    names: tuple[str, ...]
    type: str  # of the label; "number" for regression
    classes: tuple[Value, ...] | None
    means: npt.NDArray[np.float64] | None
    scales: npt.NDArray[np.float64] | None

    @classmethod
    def fit(
        cls,
        names: tuple[str, ...],
        task: str,
        columns: Mapping[str, Column],
        rows: npt.NDArray[np.int64],
        classes: tuple[Value, ...] | None,
    ) -> "TargetEncoder":
        """`classes` None: the values of the whole column. SpecificationError where the columns do not suit the task."""
        for name in names:
            if name not in columns:
                raise SpecificationError("target", name, f"one of {', '.join(columns)}")
        if task == "classification":
            column = columns[names[0]]
            classes = distinct_values(column) if classes is None else tuple(classes)
            if len(classes) < 2:
                raise SpecificationError(
                    "target", names[0], f"a column of at least two classes (it has {len(classes)})"
                )
            return cls(names, column.type, classes, None, None)
        for name in names:
            if columns[name].type == "text":
                raise SpecificationError("target", name, "a column of numbers for a regression (it holds text)")
        moments = np.array([mean_and_deviation(columns[name], rows) for name in names], dtype=np.float64)
        return cls(names, "number", None, moments[:, 0].copy(), moments[:, 1].copy())

    @property
    def outputs(self) -> int:
        """The network's output units: one a class, or one a target."""
        return len(self.names) if self.classes is None else len(self.classes)

    def transform(
        self, columns: Mapping[str, Column], rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int32] | npt.NDArray[np.float32]:
        """int32 class numbers (n,), or float32 standardized values (n, targets). DataError for a row without one."""
        if self.classes is not None:
            return self._class_numbers(columns[self.names[0]], rows)
        assert self.means is not None
        assert self.scales is not None
        values = np.stack([columns[name].values[rows] for name in self.names], axis=1).astype(np.float64, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):
            targets: npt.NDArray[np.float32] = ((values - self.means) / self.scales).astype(np.float32)
        if not np.isfinite(targets).all():
            i, k = np.argwhere(~np.isfinite(targets))[0]
            column = columns[self.names[k]]
            raise DataError(int(rows[i]), column.name, column.value(int(rows[i])), "a target that float32 can hold")
        return targets

    def _class_numbers(self, column: Column, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        assert self.classes is not None
        if column.type == "text":
            index = {value: number for number, value in enumerate(self.classes)}
            table = np.array([*(index.get(value, -1) for value in column.vocabulary), -1], dtype=np.int32)
            numbers = table[column.values[rows]]
        else:
            known = np.array(self.classes, dtype=np.float64)
            values = column.values[rows]
            places = np.minimum(np.searchsorted(known, values), len(known) - 1)
            numbers = np.where(known[places] == values, places, -1).astype(np.int32)
        if (numbers < 0).any():
            row = int(rows[np.argmax(numbers < 0)])
            raise DataError(row, column.name, column.value(row), "one of the classes")
        return numbers

    def output_names(self) -> tuple[str, ...]:
        """What a prediction may hold."""
        if self.classes is not None:
            return CLASSIFICATION_OUTPUTS
        return ("value",) if len(self.names) == 1 else ("values",)

    def decode(self, outputs: npt.NDArray[Any], wanted: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
        """Probabilities (n, classes) or standardized values (n, targets) -> one dict a row, in the user's units.

        `wanted`, a selection of `output_names()`; SpecificationError for another name.
        """
        names = self.output_names()
        for name in wanted or ():
            if name not in names:
                raise SpecificationError("outputs", name, f"one of {', '.join(names)}")
        chosen = names if wanted is None else tuple(name for name in names if name in wanted)
        if self.classes is not None:
            return self._decode_classes(self.classes, outputs, chosen)
        assert self.means is not None
        assert self.scales is not None
        values = (outputs.astype(np.float64) * self.scales + self.means).tolist()
        if len(self.names) == 1:
            return [{name: row[0] for name in chosen} for row in values]
        return [{name: dict(zip(self.names, row, strict=True)) for name in chosen} for row in values]

    def _decode_classes(
        self, classes: tuple[Value, ...], outputs: npt.NDArray[Any], chosen: tuple[str, ...]
    ) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [{} for _ in range(len(outputs))]
        if "label" in chosen:
            for row, best in zip(rows, outputs.argmax(axis=1).tolist(), strict=True):
                row["label"] = classes[best]
        if "probabilities" in chosen:
            keys = [class_key(value) for value in classes]
            for row, probabilities in zip(rows, outputs.tolist(), strict=True):
                row["probabilities"] = dict(zip(keys, probabilities, strict=True))
        return rows


def class_key(value: Value) -> str:
    """A class as a key of a JSON object: as JSON would write the value itself."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
