"""A CSV file -> typed columns on disk: Arrow reads, in two passes over the file, and memory is bounded by a block.

The first pass finds each column's type, the second converts. Nothing is guessed beyond that: a value that does not
suit its column's type is an error with its place, or makes a text column where the type was ours to find.
"""

import csv
import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from core.columns import COLUMN_TYPES, LARGEST_INTEGER, MISSING_TOKENS
from service.column_store import ColumnStore
from service.csv_diagnosis import diagnose, invalid, line_of_row, shown
from service.ingest import IngestLimits

_BLOCK = 8 * 2**20
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_INTEGER = r"^[+-]?\d+$"
_TRUE, _FALSE = ("true",), ("false",)
_HINT_TYPE = "Correct the values, leave them empty if they are missing, or give the column the type text."


@dataclass(frozen=True)
class Header:
    """Column names, and the byte at which the rows start."""

    names: tuple[str, ...]
    offset: int


def read_header(path: Path, limits: IngestLimits) -> Header:
    """The first line that is not blank. IngestError: an empty file, names that are missing, double or too many."""
    with open(path, "rb") as raw:
        start = raw.read(4)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise invalid("line 1: the file is UTF-16 text", "Save it with UTF-8 encoding.", line=1)
    consumed = 3 if start[:3] == b"\xef\xbb\xbf" else 0

    def lines() -> Iterator[str]:
        nonlocal consumed
        for line in file:
            consumed += len(line.encode("utf-8", "surrogateescape"))
            yield line

    csv.field_size_limit(2**20)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        try:
            cells = next((row for row in csv.reader(lines()) if row), None)
        except csv.Error as error:
            raise invalid(
                f"line 1: the header cannot be read ({error})", "Name the columns in line 1.", line=1
            ) from error
    if cells is None:
        raise invalid("the file is empty", "Upload a CSV file: a line of column names, then one line a row.", count=0)
    names = tuple(" ".join(cell.split()) for cell in cells)  # a spreadsheet's header may hold line breaks
    _check_names(path, names, limits)
    return Header(names, consumed)


def _check_names(path: Path, names: tuple[str, ...], limits: IngestLimits) -> None:
    if len(names) > limits.columns:
        message = f"line 1 names {len(names)} columns; at most {limits.columns} are taken"
        raise invalid(message, "Leave columns out.", line=1, count=len(names))
    joined = "".join(names)
    if "\0" in joined or not joined.isprintable():
        fault = diagnose(path, tuple(str(number) for number in range(1, len(names) + 1)))
        if fault is not None:
            raise fault
        place = next(place for place, name in enumerate(names, start=1) if not name.isprintable())
        message = f"line 1, column {place}: the name {names[place - 1]!r} holds a character that cannot be printed"
        raise invalid(message, "Rename the column.", line=1, column=place, value=shown(names[place - 1]), count=1)
    empty = [place for place, name in enumerate(names, start=1) if not name]
    if empty:
        message = f"line 1: column {empty[0]} has no name ({len(empty)} of {len(names)} columns have none)"
        hint = "Name every column in line 1, or drop the column (pandas writes one for its index: to_csv(index=False))."
        raise invalid(message, hint, line=1, column=empty[0], value="", count=len(empty))
    if len(set(names)) < len(names):
        name = next(name for place, name in enumerate(names) if name in names[:place])
        places = [place for place, other in enumerate(names, start=1) if other == name]
        message = f"line 1 gives the name {name!r} to {len(places)} columns: {', '.join(map(str, places))}"
        raise invalid(
            message, "Give each column a name of its own.", line=1, column=name, value=name, count=len(places)
        )
    if len(names) == 1 and re.search(r"[;\t|]", names[0]):
        message = (
            f"line 1 holds one column, '{shown(names[0])}': the values seem to be separated by something else than ,"
        )
        raise invalid(message, "Separate the values by commas.", line=1, column=1, value=shown(names[0]), count=1)
    numbered = {tuple(str(number + first) for number in range(len(names))) for first in (0, 1)}
    if all(re.match(_NUMBER, name) for name in names) and names not in numbered:
        message = f"line 1 holds numbers ({shown(','.join(names))}) where the names of the columns should stand"
        raise invalid(message, "Put a line of column names first.", line=1, column=1, value=names[0], count=len(names))


@dataclass
class _Finding:
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
        if not self.fractional and (largest > LARGEST_INTEGER or not _is_integers(values)):
            plain = pc.match_substring_regex(clean(values), _INTEGER)
            self.fractional = not pc.all(plain).as_py()
            self.large = self.large or largest > LARGEST_INTEGER


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


@dataclass
class CsvTable:
    """The file at `path`; `declared` gives the types of some columns."""

    path: Path
    declared: Mapping[str, str]
    limits: IngestLimits
    header: Header = field(init=False)

    def read(self, store: ColumnStore) -> None:
        """Check everything, and write the columns into `store`. IngestError tells what is wrong."""
        self.header = read_header(self.path, self.limits)
        self._check_declared()
        self._check_bytes()
        types, rows = self._types()
        if rows == 0:
            message = f"the file holds a header of {len(types)} columns and no row"
            raise invalid(message, "Add a line for each row.", line=1, count=0)
        store.start(self.header.names, types, rows)
        for batch in self._batches():
            for place, kind in enumerate(types):
                values = batch.column(place)
                if kind == "text":
                    store.add_text(place, values)
                    continue
                digits = self.header.names[place] in self.declared
                numbers = to_booleans(values, digits) if kind == "boolean" else to_numbers(values)
                if numbers is None or (kind == "integer" and not _whole(numbers)) or np.isinf(numbers).any():
                    raise self._wrong_value(place, kind)
                store.add_numbers(place, numbers)

    def _check_declared(self) -> None:
        for name, kind in self.declared.items():
            if name not in self.header.names:
                message = f"columns gives a type to {name!r}, and the file has no such column"
                raise invalid(message, f"It has {shown(', '.join(self.header.names))}.", column=name, value=kind)
            if kind not in COLUMN_TYPES:
                message = f"columns gives {name!r} the type {kind!r}"
                raise invalid(message, f"Types are {', '.join(COLUMN_TYPES)}.", column=name, value=str(kind))

    def _check_bytes(self) -> None:
        """NUL bytes, and signs of a quote left open at the end: Arrow takes both without a word.

        An odd number of quotes, or quotes and no line break at the end, are no proof: a close look decides.
        """
        with open(self.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            suspect = content.find(b"\0") >= 0
            if content.find(b'"') >= 0:
                quotes = sum(content[at : at + _BLOCK].count(b'"') for at in range(0, len(content), _BLOCK))
                suspect = suspect or quotes % 2 == 1 or content[-1:] not in (b"\n", b"\r")
        if suspect:
            self._refuse()

    def _refuse(self, unless: str | None = None) -> None:
        """Raise the fault that a close look at the file finds, if it finds one."""
        fault = diagnose(self.path, self.header.names)
        if fault is not None:
            raise fault
        if unless is not None:
            raise invalid(f"the file cannot be read as CSV: {shown(unless)}", "Export the table again as CSV.")

    def _batches(self, columns: Sequence[int] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows, block by block, every value a string, null where the cell is one of the missing tokens."""
        places = [str(place) for place in range(len(self.header.names))]
        with open(self.path, "rb") as file:
            file.seek(self.header.offset)
            try:
                yield from pyarrow.csv.open_csv(
                    file,
                    read_options=pyarrow.csv.ReadOptions(column_names=places, block_size=_BLOCK),
                    parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
                    convert_options=pyarrow.csv.ConvertOptions(
                        column_types=dict.fromkeys(places, pa.string()),
                        include_columns=None if columns is None else [places[place] for place in columns],
                        null_values=sorted(MISSING_TOKENS),
                        strings_can_be_null=True,
                        quoted_strings_can_be_null=True,
                    ),
                )
            except pa.ArrowInvalid as error:
                if "Empty CSV file" in str(error):
                    return
                self._refuse(unless=str(error))

    def _types(self) -> tuple[list[str], int]:
        """The type of each column, found or declared, and the number of rows."""
        names = self.header.names
        findings = [_Finding() for _ in names]
        rows = 0
        last = None
        for batch in self._batches():
            rows += batch.num_rows
            last = batch.column(len(names) - 1)[-1].as_py() if batch.num_rows else last
            for place, name in enumerate(names):
                if name not in self.declared:
                    findings[place].see(batch.column(place))
        if last is not None and last.endswith(("\n", "\r")):
            self._refuse()  # the last value holds the file's end, or so it seems: a quote was left open
        types = [self.declared.get(name) or finding.type() for name, finding in zip(names, findings, strict=True)]
        for place, (kind, finding) in enumerate(zip(types, findings, strict=True)):
            if kind == "number" and finding.infinite:
                raise self._wrong_value(place, kind)
        return types, rows

    def _wrong_value(self, place: int, kind: str) -> Exception:
        """The error for a column that holds something else than its type `kind`: first value, line, count."""
        name = self.header.names[place]
        row, count = 0, 0
        first: tuple[int, str] | None = None
        for batch in self._batches([place]):
            wrong = _wrong(clean(batch.column(0)), kind)
            if count == 0 and wrong.any():
                at = int(np.argmax(wrong))
                first = row + at, batch.column(0)[at].as_py()
            count += int(wrong.sum())
            row += batch.num_rows
        if first is None:
            return invalid(f"column {name!r} cannot be read as {kind}", _HINT_TYPE, column=name)
        line, value = line_of_row(self.path, first[0]), shown(first[1])
        expected = {"integer": f"an integer of at most {LARGEST_INTEGER}", "number": "a finite number"}
        others = f" ({count} such values)" if count > 1 else ""
        message = f"line {line}, column {name!r}: '{value}' is not {expected.get(kind, 'true or false')}{others}"
        return invalid(message, _HINT_TYPE, line=line, column=name, value=value, count=count)


def _whole(numbers: npt.NDArray[np.float64]) -> bool:
    present = numbers[~np.isnan(numbers)]
    return bool((np.floor(present) == present).all() and (np.abs(present) <= LARGEST_INTEGER).all())


def _wrong(values: pa.StringArray, kind: str) -> npt.NDArray[np.bool_]:
    """Where a value is present and not of the type `kind`."""
    if kind == "boolean":
        right = pc.is_in(pc.utf8_lower(values), pa.array(["true", "false", "1", "0"]))
    else:
        right = pc.match_substring_regex(values, _NUMBER)
    flags: npt.NDArray[np.bool_] = np.array(pc.fill_null(right, True))
    if kind != "boolean":
        texts = pc.if_else(pa.array(flags), values, None)
        numbers = pc.cast(texts, pa.float64()).to_numpy(zero_copy_only=False)
        with np.errstate(invalid="ignore"):
            flags &= ~np.isinf(numbers)
            if kind == "integer":
                flags &= np.isnan(numbers) | ((np.floor(numbers) == numbers) & (np.abs(numbers) <= LARGEST_INTEGER))
    return ~flags
