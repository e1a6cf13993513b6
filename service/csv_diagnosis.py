"""What exactly is wrong with a CSV file, and where: slower than the reader, and asked only once that has failed.

Line numbers are those of a text editor: the header is line 1, and a line break within quotes counts.
"""

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.ingest import IngestError

_SHOWN = 60  # characters of an offending value in a message
_END = "\x1e"  # a last line of our own: where it ends up tells whether a quote is still open


@dataclass(frozen=True)
class Record:
    """One row: its cells, and the line on which it starts."""

    line: int
    cells: list[str]


def records(path: Path) -> Iterator[Record]:
    """All rows, the header first, blank lines left out; bytes that are not UTF-8 stand as surrogates.

    A row with an open quote at the file's end comes last and ends with `_END`.
    """
    csv.field_size_limit(sys.maxsize)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(_with_end(file))
        line = 1
        for cells in reader:
            if cells and cells != [_END]:
                yield Record(line, cells)
            line = reader.line_num + 1


def _with_end(lines: Iterator[str]) -> Iterator[str]:
    yield from lines
    yield _END


def shown(value: str) -> str:
    """`value`, printable and cut to what fits a message: a byte that is not UTF-8 as \\xe9, a line break as \\n."""
    text = value[: _SHOWN + 1].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    printable = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return printable if len(printable) <= _SHOWN else printable[:_SHOWN] + "..."


def invalid(message: str, hint: str, **place: int | str | None) -> IngestError:
    """An IngestError of a broken file; `place` holds line, column, value, count as far as they are known."""
    return IngestError("invalid_dataset", message, hint=hint, **place)  # type: ignore[arg-type]


def diagnose(path: Path, names: Sequence[str]) -> IngestError | None:
    """The fault of a file whose header is `names`; None where every row is sound.

    Wrong characters come first, since they may be behind all else; then the first broken row.
    """
    return _nul_bytes(path, names) or _encoding(path, names) or _rows(path, names)


def _nul_bytes(path: Path, names: Sequence[str]) -> IngestError | None:
    return _characters(
        path,
        names,
        lambda cell: "\0" in cell,
        "a NUL byte",
        "CSV is text: export the table again as UTF-8 (a spreadsheet file or UTF-16 text has NUL bytes in it).",
    )


def _encoding(path: Path, names: Sequence[str]) -> IngestError | None:
    return _characters(
        path,
        names,
        lambda cell: any("\udc80" <= character <= "\udcff" for character in cell),
        "bytes that are not UTF-8",
        "Save the file with UTF-8 encoding.",
    )


def _characters(
    path: Path, names: Sequence[str], wrong: Callable[[str], bool], what: str, hint: str
) -> IngestError | None:
    first: tuple[int, int, str] | None = None
    count = 0
    for record in records(path):
        joined = "".join(record.cells)
        if joined.isascii() and "\0" not in joined:
            continue
        for place, cell in enumerate(record.cells):
            if wrong(cell):
                count += 1
                first = first or (record.line, place, cell)
    if first is None:
        return None
    line, place, cell = first
    column = names[place] if place < len(names) else place + 1
    others = f" ({count} such values)" if count > 1 else ""
    message = f"line {line}, column {column!r} holds {what}: '{shown(cell)}'{others}"
    return invalid(message, hint, line=line, column=column, value=shown(cell), count=count)


def _rows(path: Path, names: Sequence[str]) -> IngestError | None:
    """The first row of another length than the header's, or whose quote is never closed."""
    first: Record | None = None
    count = 0
    last: Record | None = None
    for record in records(path):
        last = record
        if record.cells[-1].endswith(_END):
            continue
        if len(record.cells) != len(names):
            first, count = first or record, count + 1
    if last is not None and last.cells[-1].endswith(_END) and (first is None or first is last):
        return _open_quote(last, names)
    if first is None:
        return None
    return _ragged(first, count, names, cut_off=first is last and not _ends_with_newline(path))


def _open_quote(record: Record, names: Sequence[str]) -> IngestError:
    place = len(record.cells) - 1
    column = names[place] if place < len(names) else place + 1
    value = shown(record.cells[-1].removesuffix(_END))
    message = f"the quote opened in line {record.line}, column {column!r} is not closed before the file ends: '{value}'"
    hint = 'The file is cut off (upload it again, whole), or a " is left over there (write "" for a " inside quotes).'
    return invalid(message, hint, line=record.line, column=column, value=value, count=1)


def _ragged(record: Record, count: int, names: Sequence[str], cut_off: bool) -> IngestError:
    found, wanted = len(record.cells), len(names)
    others = f" ({count} such lines)" if count > 1 else ""
    message = (
        f"line {record.line} has {found} value{'s' * (found != 1)} where the header names {wanted} columns{others}"
    )
    value = shown(",".join(record.cells))
    if found < wanted:
        column: str | int = names[found]
        message += f": there is none for column {column!r}"
        hint = "Give every line as many values as the header has names; a missing value is written as nothing: 1,,3."
        if cut_off:
            message += ", where the file ends"
            hint = "The file looks cut off: upload it again, whole."
    else:
        column = wanted + 1
        extra = shown(record.cells[wanted])
        message += f": '{extra}' is one too many"
        hint = 'Put a value that holds a comma in quotes: "a, b".'
    return invalid(message, hint, line=record.line, column=column, value=value, count=count)


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(0, 2)
        file.seek(max(file.tell() - 1, 0))
        return file.read(1) in (b"\n", b"\r")


def line_of_row(path: Path, row: int) -> int:
    """The line on which data row `row`, from 0, starts."""
    for number, record in enumerate(records(path)):
        if number == row + 1:
            return record.line
    raise IndexError(row)
