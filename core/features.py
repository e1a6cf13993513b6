"""Feature values -> one float32 row: the single code path behind training and serving, so that they cannot differ."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .columns import Column, typed
from .errors import DataError, SpecificationError

MAX_CATEGORIES = 10_000
MISSING, UNSEEN = -1, -2  # category codes that are no category
_CHUNK = 8192  # rows transformed at a time: bounds the float64 working memory

Numbers = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FeatureEncoder:
    """Fitted: `fills`, `offsets`, `scales` float64, one a numeric feature; `categories`, one tuple a text feature.

    A numeric feature is one output column, (value - offset) / scale with `fill` where missing; a text feature is one
    0/1 column a category, all 0 where missing or unseen. Columns stand in the order of `names`.
    """

    names: tuple[str, ...]
    types: tuple[str, ...]
    fills: Numbers
    offsets: Numbers
    scales: Numbers
    categories: tuple[tuple[str, ...], ...]
    missing: str
    unseen: str
    numeric: tuple[int, ...] = field(init=False)  # places in `names`
    text: tuple[int, ...] = field(init=False)
    slots: npt.NDArray[np.int64] = field(init=False)  # output column of each numeric feature
    starts: tuple[int, ...] = field(init=False)  # first output column of each text feature
    width: int = field(init=False)
    codes: tuple[dict[str, int], ...] = field(init=False)  # category -> code, one a text feature

    def __post_init__(self) -> None:
        text = tuple(place for place, kind in enumerate(self.types) if kind == "text")
        numeric = tuple(place for place, kind in enumerate(self.types) if kind != "text")
        sizes = np.ones(len(self.names), dtype=np.int64)
        sizes[list(text)] = [len(values) for values in self.categories]
        starts = np.concatenate(([0], np.cumsum(sizes)))
        derived: dict[str, Any] = {
            "numeric": numeric,
            "text": text,
            "slots": starts[list(numeric)],
            "starts": tuple(int(start) for start in starts[list(text)]),
            "width": int(starts[-1]),
            "codes": tuple({value: code for code, value in enumerate(values)} for values in self.categories),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @classmethod
    def fit(
        cls,
        names: tuple[str, ...],
        columns: Mapping[str, Column],
        rows: npt.NDArray[np.int64],
        *,
        standardize: bool,
        missing: str,
        unseen: str,
    ) -> "FeatureEncoder":
        """Means, deviations and categories over `rows`.

        DataError for an infinite value; SpecificationError for an absent column, or a text column of too many values.
        """
        types, moments, categories = [], [], []
        for name in names:
            if name not in columns:
                raise SpecificationError("features", name, f"one of {', '.join(columns)}")
            column = columns[name]
            types.append(column.type)
            if column.type == "text":
                categories.append(_categories(column, rows))
            else:
                moments.append(mean_and_deviation(column, rows))
        means = np.array([mean for mean, _ in moments], dtype=np.float64)
        scales = np.array([deviation for _, deviation in moments], dtype=np.float64)
        offsets = means if standardize else np.zeros_like(means)
        scales = scales if standardize else np.ones_like(scales)
        return cls(names, tuple(types), means, offsets, scales, tuple(categories), missing, unseen)

    def output_names(self) -> tuple[str, ...]:
        """One name an output column: the feature's, or feature=category."""
        return tuple(name for group in self._groups() for name in group)

    def _groups(self) -> Iterator[list[str]]:
        categories = iter(self.categories)
        for name, kind in zip(self.names, self.types, strict=True):
            yield [f"{name}={value}" for value in next(categories)] if kind == "text" else [name]

    def example(self) -> dict[str, Any]:
        """A made-up row of plausible values: means and first categories, no row of anybody's data."""
        fills, categories = iter(self.fills), iter(self.categories)
        row: dict[str, Any] = {}
        for name, kind in zip(self.names, self.types, strict=True):
            if kind == "text":
                row[name] = next(iter(next(categories)), None)
            else:
                mean = float(next(fills))
                row[name] = typed(kind, mean if kind == "number" else round(mean))
        return row

    def transform(
        self, columns: Mapping[str, Column], rows: npt.NDArray[np.int64], out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """The features of a table's `rows`, float32 (len(rows), width), into `out` if given (a memory map will do)."""
        if out is None:
            out = np.empty((len(rows), self.width), dtype=np.float32)
        for name, kind in zip(self.names, self.types, strict=True):
            if name not in columns or (columns[name].type == "text") != (kind == "text"):
                raise SpecificationError("features", name, f"a column of type {kind}")
        tables = [self._table(j, columns[self.names[place]]) for j, place in enumerate(self.text)]
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            numbers = np.empty((len(chunk), len(self.numeric)), dtype=np.float64)
            for k, place in enumerate(self.numeric):
                numbers[:, k] = columns[self.names[place]].values[chunk]
            codes = []
            for place, table in zip(self.text, tables, strict=True):
                column = columns[self.names[place]]
                code = table[column.values[chunk]]
                if self.unseen == "error" and (code == UNSEEN).any():
                    row = int(chunk[np.argmax(code == UNSEEN)])
                    raise unseen_category(row, column.name, column.value(row))
                codes.append(code)
            self.encode(numbers, codes, out[start : start + len(chunk)], chunk)
        return out

    def _table(self, j: int, column: Column) -> Codes:
        """Vocabulary code -> category code; the last entry, reached by -1, is the missing one."""
        known = self.codes[j]
        return np.array([*(known.get(value, UNSEEN) for value in column.vocabulary), MISSING], dtype=np.int64)

    def encode(
        self, numbers: Numbers, codes: Sequence[Codes], out: npt.NDArray[np.float32], rows: Sequence[int] | Codes
    ) -> None:
        """`numbers` (n, numeric), NaN where missing, and a code array (n,) a text feature -> `out` (n, width).

        `rows` are the rows' numbers for messages. DataError: a missing value where missing values are errors, a number
        that float32 cannot hold.
        """
        gaps = np.isnan(numbers)
        filled = numbers
        if gaps.any():
            if self.missing == "error":
                row, k = np.argwhere(gaps)[0]
                raise missing_value(int(rows[row]), self.names[self.numeric[k]])
            filled = np.where(gaps, self.fills, numbers)
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = filled - self.offsets
            scaled /= self.scales
            if not self.text:
                out[...] = scaled
                ready = out
            else:
                ready = scaled.astype(np.float32)
        if not np.isfinite(ready).all():
            row, k = np.argwhere(~np.isfinite(ready))[0]
            value = float(numbers[row, k])
            raise DataError(int(rows[row]), self.names[self.numeric[k]], value, "a number that float32 can hold")
        if self.text:
            out[...] = 0.0
            out[:, self.slots] = ready
            for start, place, code in zip(self.starts, self.text, codes, strict=True):
                if self.missing == "error" and (code == MISSING).any():
                    raise missing_value(int(rows[int(np.argmax(code == MISSING))]), self.names[place])
                present = np.flatnonzero(code >= 0)
                out[present, start + code[present]] = 1.0


def missing_value(row: int, name: str) -> DataError:
    """What is said of a gap under `missing: error`."""
    return DataError(row, name, None, "a value (preprocessing.missing is 'error')")


def unseen_category(row: int, name: str, value: Any) -> DataError:
    """What is said of an unknown category under `unseen: error`."""
    return DataError(row, name, value, "a category of the training rows (preprocessing.unseen is 'error')")


def mean_and_deviation(column: Column, rows: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Mean and population deviation of the values present in `rows`; (0, 1) where there are none, deviation 1 for 0."""
    values = column.values[rows].astype(np.float64, copy=False)
    present = values[~np.isnan(values)]
    if present.size == 0:
        return 0.0, 1.0
    low, high = float(present.min()), float(present.max())
    if not np.isfinite(low) or not np.isfinite(high):
        row = int(rows[np.argmax(np.isinf(values))])
        raise DataError(row, column.name, column.value(row), "a finite number")
    if low == high:  # exactly: a rounded mean would leave a deviation of 1e-17, and features of size 1 made of nothing
        return low, 1.0
    # A power of two brings the values near 1 without rounding: squares then neither overflow nor vanish.
    exponent = int(np.frexp(max(abs(low), abs(high)))[1])
    scaled = np.ldexp(present, -exponent)
    mean = scaled.mean()
    deviation = np.sqrt(np.square(scaled - mean).mean())
    return float(np.ldexp(mean, exponent)), float(np.ldexp(deviation, exponent)) or 1.0


def _categories(column: Column, rows: npt.NDArray[np.int64]) -> tuple[str, ...]:
    """The values that occur in `rows`, sorted."""
    seen = np.bincount(column.values[rows].astype(np.int64) + 1, minlength=len(column.vocabulary) + 1)[1:]
    categories = tuple(column.vocabulary[code] for code in np.flatnonzero(seen))
    if len(categories) > MAX_CATEGORIES:
        expected = f"a text column of at most {MAX_CATEGORIES} values (it has {len(categories)}): exclude it"
        raise SpecificationError("features", column.name, expected)
    return categories
