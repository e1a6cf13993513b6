"""A CSV file -> typed columns on disk: Arrow reads, in two passes over the file, and memory is bounded by a block.

The first pass finds each column's type, the second converts. Nothing is guessed beyond that: a value that does not
suit its column's type is an error with its place, or makes a text column where the type was ours to find.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from core.columns import COLUMN_TYPES, LARGEST_INTEGER, MISSING_TOKENS
from service.column_store import ColumnStore
from service.csv_diagnosis import diagnose, invalid, line_of_row, shown
from service.csv_header import Header, read_header
from service.csv_values import Finding, clean, to_booleans, to_numbers, whole, wrong
from service.ingest import IngestLimits

_BLOCK = 8 * 2**20
_HINT_TYPE = "Correct the values, leave them empty if they are missing, or give the column the type text."


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
                if numbers is None or (kind == "integer" and not whole(values, numbers)) or np.isinf(numbers).any():
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
        nul, quotes, block = False, 0, b""
        with open(self.path, "rb") as file:
            while following := file.read(_BLOCK):
                block = following
                nul = nul or b"\0" in block
                quotes += block.count(b'"')
        if nul or quotes % 2 == 1 or (quotes > 0 and block[-1:] not in (b"\n", b"\r")):
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
        findings = [Finding() for _ in names]
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
            places = wrong(clean(batch.column(0)), kind)
            if count == 0 and places.any():
                at = int(np.argmax(places))
                first = row + at, batch.column(0)[at].as_py()
            count += int(places.sum())
            row += batch.num_rows
        if first is None:
            return invalid(f"column {name!r} cannot be read as {kind}", _HINT_TYPE, column=name)
        line, value = line_of_row(self.path, first[0]), shown(first[1])
        expected = {"integer": f"an integer of at most {LARGEST_INTEGER}", "number": "a finite number"}
        others = f" ({count} such values)" if count > 1 else ""
        message = f"line {line}, column {name!r}: '{value}' is not {expected.get(kind, 'true or false')}{others}"
        return invalid(message, _HINT_TYPE, line=line, column=name, value=value, count=count)
