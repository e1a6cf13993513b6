"""Prediction rows, as they come out of JSON, -> the numbers and category codes that the encoder takes.

A row of plain numbers goes through NumPy at once; value by value only where something else than a number is in it.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from .columns import MISSING_TOKENS
from .errors import DataError
from .features import MISSING, UNSEEN, FeatureEncoder, unseen_category

_SHOWN = 80  # characters of an offending value in a message


class RecordReader:
    """Reads rows for one encoder; immutable once built, so any number of threads may share it."""

    def __init__(self, encoder: FeatureEncoder) -> None:
        self._encoder = encoder
        self._by_name = _picker(encoder.names)
        self._numbers = _picker(encoder.numeric)
        self._booleans = [k for k, place in enumerate(encoder.numeric) if encoder.types[place] == "boolean"]

    def read(self, instances: Sequence[Any]) -> tuple[npt.NDArray[np.float64], list[npt.NDArray[np.int64]]]:
        """Numbers float64 (n, numeric features), NaN where missing, and category codes int64 (n,) a text feature."""
        encoder = self._encoder
        rows = [self._ordered(row, instance) for row, instance in enumerate(instances)]
        numeric = rows if not encoder.text else [self._numbers(row) for row in rows]
        numbers = self._matrix(numeric)
        codes = [
            np.array([self._code(j, i, row[place]) for i, row in enumerate(rows)], dtype=np.int64)
            for j, place in enumerate(encoder.text)
        ]
        return numbers, codes

    def _ordered(self, row: int, instance: Any) -> Sequence[Any]:
        """The row's values in the order of the features."""
        names = self._encoder.names
        if isinstance(instance, Mapping):
            if len(instance) == len(names):
                try:
                    return self._by_name(instance)
                except KeyError:
                    pass  # the names differ: told below, by name
            raise _wrong_names(row, instance, names)
        if not isinstance(instance, list | tuple):
            expected = f"an object of feature values, or a list of {len(names)}"
            raise DataError(row, None, _shown(instance), expected)
        if len(instance) != len(names):
            expected = f"{len(names)} values, in the order {_few(names)}"
            raise DataError(row, None, f"{len(instance)} values", expected)
        return instance

    def _matrix(self, rows: Sequence[Sequence[Any]]) -> npt.NDArray[np.float64]:
        """float64 (n, numeric features)."""
        shape = (len(rows), len(self._encoder.numeric))
        try:
            raw = np.array(rows)
        except (ValueError, OverflowError):
            raw = np.empty(0, dtype=object)  # lists within lists: told below, by row and column
        if raw.shape == shape and raw.dtype.kind in "fiub":
            numbers = raw.astype(np.float64, copy=False)
        else:
            numbers = np.empty(shape, dtype=np.float64)
            for i, row in enumerate(rows):
                numbers[i] = [self._number(i, k, value) for k, value in enumerate(row)]
        if self._booleans:
            flags = numbers[:, self._booleans]
            wrong = (flags != 0.0) & (flags != 1.0) & ~np.isnan(flags)
            if wrong.any():
                i, k = np.argwhere(wrong)[0]
                raise DataError(int(i), self._name(self._booleans[k]), float(flags[i, k]), "true or false")
        return numbers

    def _name(self, k: int) -> str:
        return self._encoder.names[self._encoder.numeric[k]]

    def _number(self, row: int, k: int, value: Any) -> float:
        if type(value) is float:
            return value
        if value is None or (isinstance(value, str) and value.strip() in MISSING_TOKENS):
            return np.nan
        if isinstance(value, Real | np.bool_):
            try:
                return float(value)
            except OverflowError:
                pass  # an integer of more than 308 digits: no number that we can take
        raise DataError(row, self._name(k), _shown(value), "a number, or null where there is none")

    def _code(self, j: int, row: int, value: Any) -> int:
        """The category code of a text feature's value."""
        encoder = self._encoder
        if isinstance(value, str):
            code = encoder.codes[j].get(value)
            if code is None:
                value = value.strip()
                code = MISSING if value in MISSING_TOKENS else encoder.codes[j].get(value, UNSEEN)
            if code == UNSEEN and encoder.unseen == "error":
                raise unseen_category(row, encoder.names[encoder.text[j]], _shown(value))
            return code
        if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
            return MISSING
        raise DataError(row, encoder.names[encoder.text[j]], _shown(value), "text, or null where there is none")


def _picker(keys: Sequence[Any]) -> Callable[[Any], tuple[Any, ...]]:
    """A function that takes the items `keys` out of a row, as a tuple for one or none too."""
    if not keys:
        return lambda row: ()
    if len(keys) == 1:
        return lambda row: (row[keys[0]],)
    return itemgetter(*keys)


def _wrong_names(row: int, instance: Mapping[Any, Any], names: tuple[str, ...]) -> DataError:
    for name in instance:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1)
            meant = f"did you mean {close[0]!r}? The" if close else "the"
            expected = f"no such column: {meant} model takes {_few(names)}"
            return DataError(row, str(name), _shown(instance[name]), expected)
    missing = next(name for name in names if name not in instance)
    return DataError(row, missing, "nothing", "every feature to be named, with null where there is no value")


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed) if len(listed) <= 10 else f"{', '.join(listed[:8])}, ... {listed[-1]} ({len(listed)})"


def _shown(value: Any) -> Any:
    """`value`, cut to what fits a message."""
    if isinstance(value, int | float | bool) or value is None:
        return (
            value if not isinstance(value, int) or abs(value) < 10**30 else f"an integer of {value.bit_length()} bits"
        )
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
