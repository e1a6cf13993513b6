"""The first line of a CSV file: the names of the columns, refused with place and remedy where they cannot serve."""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service.csv_diagnosis import diagnose, invalid, shown
from service.csv_values import NUMBER
from service.ingest import IngestLimits


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
    if all(re.match(NUMBER, name) for name in names) and names not in numbered:
        message = f"line 1 holds numbers ({shown(','.join(names))}) where the names of the columns should stand"
        raise invalid(message, "Put a line of column names first.", line=1, column=1, value=names[0], count=len(names))
