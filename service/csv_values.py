"""Which values make which type of column, and how they become numbers: the typing rules, on blocks of Arrow strings."""

from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from core.columns import LARGEST_INTEGER, MISSING_TOKENS

NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_INTEGER = r"^[+-]?\d+$"
_TRUE, _FALSE = ("true",), ("false",)


@dataclass
class Finding:
    """What the values of a column seen so far allow it to be. `kind`: None (no value yet), number, boolean or text."""

    kind: str | None = None
    fractional: bool = False  # some value is not a plain integer
    large: bool = False  # some integer is beyond what float64 holds exactly
    infinite: bool = False

    def type(self) -> str:
        """The column's type, by what was seen."""
        if self.kind == "number":
            if self.fractional:
                return "number"
            return "text" if self.large else "integer"
        return self.kind or "number"

    def see(self, values: pa.StringArray) -> None:
        """Take one more block of values into account."""
        if self.kind == "text" or values.null_count == len(values):
            return
        numbers = to_numbers(values)
        if numbers is None:
            words = pc.unique(clean(values).drop_null())
            if not len(words):
                return
            allowed = pc.is_in(pc.utf8_lower(words), pa.array(_TRUE + _FALSE))
            kind = "boolean" if pc.all(allowed).as_py() else "text"
            self.kind = kind if self.kind in (None, kind) else "text"
            return
        present = numbers[~np.isnan(numbers)]
        if not present.size:
            return
        self.kind = "number" if self.kind in (None, "number") else "text"
        largest = np.abs(present).max()
        self.infinite = self.infinite or bool(np.isinf(largest))
        if not self.fractional and (largest >= LARGEST_INTEGER or not _is_integers(values)):
            plain = pc.match_substring_regex(clean(values), _INTEGER)
            self.fractional = not pc.all(plain).as_py()
            self.large = self.large or inexact(values, numbers)


def _is_integers(values: pa.StringArray) -> bool:
    try:
        pc.cast(values, pa.int64())
    except pa.ArrowInvalid:
        return False
    return True


def clean(values: pa.StringArray) -> pa.StringArray:
    """Without surrounding blanks; null where what is left stands for a missing value."""
    trimmed = pc.utf8_trim_whitespace(values)
    return pc.if_else(pc.is_in(trimmed, pa.array(sorted(MISSING_TOKENS))), None, trimmed)


def to_numbers(values: pa.StringArray) -> npt.NDArray[np.float64] | None:
    """float64, NaN where missing; None where some value is no number."""
    try:
        numbers = pc.cast(values, pa.float64())
    except pa.ArrowInvalid:
        try:
            numbers = pc.cast(clean(values), pa.float64())
        except pa.ArrowInvalid:
            return None
    array: npt.NDArray[np.float64] = numbers.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)
    return array


def to_booleans(values: pa.StringArray, digits: bool) -> npt.NDArray[np.float64] | None:
    """1.0, 0.0, NaN where missing; None where some value is neither. `digits`: 1 and 0 will do too."""
    words = pc.utf8_lower(clean(values))
    true = pc.is_in(words, pa.array(_TRUE + (("1",) if digits else ())))
    false = pc.is_in(words, pa.array(_FALSE + (("0",) if digits else ())))
    missing = pc.is_null(words)
    if not pc.all(pc.or_(pc.or_(true, false), missing)).as_py():
        return None
    flags: npt.NDArray[np.float64] = np.array(true, dtype=np.float64)
    flags[np.array(missing)] = np.nan
    return flags


def inexact(values: pa.StringArray, numbers: npt.NDArray[np.float64]) -> bool:
    """Whether some value, as it is written, is beyond 2**53: as float64, 2**53 + 1 would not be."""
    with np.errstate(invalid="ignore"):
        large = np.abs(numbers) >= LARGEST_INTEGER
    return bool(large.any()) and any(_is_beyond(value) for value in values.filter(pa.array(large)).to_pylist())


def _is_beyond(value: str) -> bool:
    return abs(Decimal(value.strip())) > LARGEST_INTEGER


def whole(values: pa.StringArray, numbers: npt.NDArray[np.float64]) -> bool:
    present = numbers[~np.isnan(numbers)]
    return bool((np.floor(present) == present).all()) and not inexact(values, numbers)


def wrong(values: pa.StringArray, kind: str) -> npt.NDArray[np.bool_]:
    """Where a value is present and not of the type `kind`."""
    if kind == "boolean":
        right = pc.is_in(pc.utf8_lower(values), pa.array(["true", "false", "1", "0"]))
    else:
        right = pc.match_substring_regex(values, NUMBER)
    flags: npt.NDArray[np.bool_] = ~np.array(pc.or_(pc.fill_null(right, True), pc.is_null(values)))
    if kind != "boolean":
        numbers = pc.cast(pc.if_else(pa.array(flags), None, values), pa.float64()).to_numpy(zero_copy_only=False)
        flags |= np.isinf(numbers)
        if kind == "integer":
            flags |= ~np.isnan(numbers) & (np.floor(numbers) != numbers)
            for place in np.flatnonzero(np.abs(numbers) >= LARGEST_INTEGER):
                flags[place] = _is_beyond(values[place].as_py())
    return flags
