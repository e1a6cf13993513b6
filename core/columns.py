"""A typed column of a table, and the few rules about its values that training and serving must share."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

COLUMN_TYPES = ("integer", "number", "boolean", "text")

# What stands for "no value" in a file, and in a text feature of a prediction row.
MISSING_TOKENS = frozenset({"", "NA", "N/A", "NaN", "nan", "null", "NULL"})

# Integers above are not exact in float64: such a column is kept as text.
LARGEST_INTEGER = 2**53

Value = str | int | bool | float


@dataclass(frozen=True, eq=False)
class Column:
    """One column. integer, number, boolean: float64 `values`, NaN where missing.

    text: int32 codes into `vocabulary` (sorted, no entry twice), -1 where missing.
    """

    name: str
    type: str
    values: npt.NDArray[np.float64] | npt.NDArray[np.int32]
    vocabulary: tuple[str, ...] = ()

    def missing(self) -> npt.NDArray[np.bool_]:
        """Bool (rows,): where there is no value."""
        mask: npt.NDArray[np.bool_] = self.values < 0 if self.type == "text" else np.isnan(self.values)
        return mask

    def value(self, row: int) -> Value | None:
        """The value of one row in the column's own type; None where missing."""
        number = self.values[row]
        if self.type == "text":
            return None if number < 0 else self.vocabulary[int(number)]
        return None if np.isnan(number) else typed(self.type, float(number))


def typed(column_type: str, number: float) -> int | bool | float:
    """`number` as a value of a non-text column."""
    if column_type == "integer":
        return int(number)
    return bool(number) if column_type == "boolean" else float(number)


def text_column(name: str, values: Sequence[str | None]) -> Column:
    """A text column of these values; surrounding blanks do not count, None and missing tokens are missing values."""
    stripped = ["" if value is None else value.strip() for value in values]
    vocabulary = tuple(sorted(set(stripped) - MISSING_TOKENS))
    index = {value: code for code, value in enumerate(vocabulary)}
    codes = np.array([index.get(value, -1) for value in stripped], dtype=np.int32)
    return Column(name, "text", codes, vocabulary)


def number_column(name: str, values: Sequence[float | None], column_type: str = "number") -> Column:
    """An integer, number or boolean column of these values; None is a missing value."""
    numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return Column(name, column_type, numbers)


def distinct_values(column: Column, rows: npt.NDArray[np.int64] | None = None) -> tuple[Value, ...]:
    """The sorted distinct values of `rows` (all by default), in the column's own type, missing left out."""
    values = column.values if rows is None else column.values[rows]
    if column.type == "text":
        seen = np.unique(values)
        return tuple(column.vocabulary[int(code)] for code in seen if code >= 0)
    seen = np.unique(values[~np.isnan(values)])
    return tuple(typed(column.type, float(number)) for number in seen)
