import csv
import io
import json
import pickle
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.columns import Column
from core.preprocessing import Preprocessing, PreprocessingSpec
from service.column_store import ColumnStore
from service.csv_reader import CsvTable
from service.ingest import IngestError, IngestLimits, ingest
from worker.table import Table, open_table

LIMITS = IngestLimits()


def read(folder: Path, content: bytes, types: dict[str, str] | None = None) -> Table:
    """What the subprocess does, here: most cases need no process of their own."""
    upload = folder / "upload"
    upload.write_bytes(content)
    store = ColumnStore(folder)
    CsvTable(upload, types or {}, LIMITS).read(store)
    store.finish(len(content))
    return open_table(folder)


def values(table: Table) -> dict[str, list]:
    columns = table.columns(table.names)
    return {name: [column.value(row) for row in range(table.rows)] for name, column in columns.items()}


def refused(folder: Path, content: bytes, types: dict[str, str] | None = None) -> IngestError:
    with pytest.raises(IngestError) as caught:
        read(folder, content, types)
    assert caught.value.hint
    return caught.value


def test_a_table_of_all_types_through_the_subprocess(tmp_path: Path) -> None:
    content = (
        "\ufeffage, city ,smoker,visits,id,when\r\n"
        ' 31.5 ,Ulm,TRUE,3,12345678901234567890,"1,5"\r\n'
        'NA, "Köln",false,,7,"a\r\nb"\r\n'
        "-1e-3, Ulm ,null,-7,8,\r\n"
    ).encode()
    (tmp_path / "upload").write_bytes(content)
    manifest = ingest(tmp_path, "csv", None, LIMITS)
    table = open_table(tmp_path)
    assert values(table) == {
        "age": [31.5, None, -0.001],
        "city": ["Ulm", '"Köln"', "Ulm"],  # a quote after a blank is no quoting
        "smoker": [True, False, None],
        "visits": [3, None, -7],
        "id": ["12345678901234567890", "7", "8"],
        "when": ["1,5", "a\r\nb", None],
    }
    assert manifest == json.loads((tmp_path / "dataset.json").read_bytes()) == table.manifest
    assert (manifest["rows"], manifest["bytes"], len(manifest["sha256"])) == (3, len(content), 64)
    age, city, _, visits, *_ = manifest["columns"]
    assert (age["type"], age["missing"], age["distinct"]) == ("number", 1, 2)
    assert (age["minimum"], age["maximum"], age["values"]) == (-0.001, 31.5, [-0.001, 31.5])
    assert age["mean"] == pytest.approx(15.7495)
    assert (city["type"], city["distinct"], city["values"]) == ("text", 2, ['"Köln"', "Ulm"])
    assert (visits["type"], visits["minimum"], visits["values"]) == ("integer", -7, [-7, 3])
    assert [type(value) for value in visits["values"]] == [int, int]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["columns", "dataset.json", "upload"]


@pytest.mark.parametrize(
    ("cells", "kind", "expected"),
    [
        (["1", "2", ""], "integer", [1, 2, None]),
        (["1", "2.0", "NaN"], "number", [1.0, 2.0, None]),
        (["1e3", "2", ".5"], "number", [1000.0, 2.0, 0.5]),
        (["true", "FALSE", "null"], "boolean", [True, False, None]),
        (["true", "1", "0"], "text", ["true", "1", "0"]),
        (["1", "2", "x"], "text", ["1", "2", "x"]),
        (["007", "8", "9"], "integer", [7, 8, 9]),
        (["9007199254740992", "-9007199254740992", "1"], "integer", [2**53, -(2**53), 1]),
        (["9007199254740993", "1", ""], "text", ["9007199254740993", "1", None]),
        (["9007199254740993", "0.5", ""], "number", [9007199254740992.0, 0.5, None]),
        (["0x1F", "2", "3"], "text", ["0x1F", "2", "3"]),
        (["1_000", "2", "3"], "text", ["1_000", "2", "3"]),
        (["inf", "big", "3"], "text", ["inf", "big", "3"]),
        (["-0.0", "0.0", "0.5"], "number", [0.0, 0.0, 0.5]),
        (["", "NA", "nan"], "number", [None, None, None]),
        ([" 1 ", "2", "  "], "integer", [1, 2, None]),
        ([" true", "false ", " NA "], "boolean", [True, False, None]),
        (["NA ", "Namibia", "N/A"], "text", [None, "Namibia", None]),
        (["2024-01-31", "2024-02-01", ""], "text", ["2024-01-31", "2024-02-01", None]),
    ],
)
def test_the_type_that_the_values_allow(tmp_path: Path, cells: list, kind: str, expected: list) -> None:
    table = read(tmp_path, ("c,k\n" + "".join(f"{cell},k\n" for cell in cells)).encode())
    assert table.manifest["columns"][0]["type"] == kind
    found = values(table)["c"]
    assert found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


def test_declared_types_hold(tmp_path: Path) -> None:
    types = {"zip": "text", "flag": "boolean", "count": "number"}
    table = read(tmp_path, b"zip,flag,count\n00701,1,3\n10115,0,4\n,,\n", types)
    assert values(table) == {"zip": ["00701", "10115", None], "flag": [True, False, None], "count": [3.0, 4.0, None]}


# content, line, column, value, count, words of the message
BROKEN: dict[str, tuple[bytes, int | None, Any, str | None, int | None, str]] = {
    "empty": (b"", None, None, None, 0, "the file is empty"),
    "blank": (b"\n \r\n\n"[:1] + b"\r\n\n", None, None, None, 0, "the file is empty"),
    "header only": (b"a,b\n", 1, None, None, 0, "a header of 2 columns and no row"),
    "short": (b"a,b,c\n1,2,3\n4,5\n6\n", 3, "c", "4,5", 2, "line 3 has 2 values where the header names 3 columns"),
    "long": (b"a,b\n1,2\n\n3,4,5\n", 4, 3, "3,4,5", 1, "'5' is one too many"),
    "after quoted line breaks": (b'a,b\n"x\ny\r\nz",2\n3\n', 5, "b", "3", 1, "line 5 has 1 value "),
    "old Mac line ends": (b"a,b\r1,2\r3\r", 3, "b", "3", 1, "line 3 has 1 value "),
    "cut off in a row": (b"a,b,c\n1,2,3\n4,5", 3, "c", "4,5", 1, "where the file ends"),
    "cut off in quotes": (b'a,b\n1,"x"\n2,"so mu', 3, "b", "so mu", 1, "is not closed before the file ends"),
    "cut off behind a quote": (b'a,b\n1,"x"\n2,"', 3, "b", "", 1, "is not closed before the file ends"),
    "cut off in quotes, stray one": (b'a,b\n5" pipe,1\n2,"so', 3, "b", "so", 1, "is not closed before the file ends"),
    "open quote": (b'a,b\n1,"x\n2,y\n', 2, "b", "x\\n2,y\\n", 1, "is not closed before the file ends"),
    "open quote, stray one": (b'a,b\n5" pipe,1\n1,"x\n', 3, "b", "x\\n", 1, "is not closed before the file ends"),
    "open quote in the header": (b'a,"b\n1,2\n', 1, "b 1,2", "b\\n1,2\\n", 1, "is not closed"),
    "NUL": (b"a,b\n1,x\n2,y\0z\n3,\0\n", 3, "b", "y\\x00z", 2, "holds a NUL byte: 'y\\x00z' (2 such values)"),
    "NUL in the header": (b"a,b\0\n1,2\n", 1, "2", "b\\x00", 1, "holds a NUL byte"),
    "Latin-1": ("a,b\n1,x\n2,Köln\n".encode("latin-1"), 3, "b", "K\\xf6ln", 1, "bytes that are not UTF-8"),
    "Latin-1 header": ("a,Größe\n1,2\n".encode("latin-1"), 1, "2", "Gr\\xf6\\xdfe", 1, "bytes that are not UTF-8"),
    "UTF-16": ("a,b\n1,2\n".encode("utf-16"), 1, None, None, None, "UTF-16"),
    "double name": (b"a,b,a\n1,2,3\n", 1, "a", "a", 2, "gives the name 'a' to 2 columns: 1, 3"),
    "double but for blanks": (b"a, a\n1,2\n", 1, "a", "a", 2, "gives the name 'a'"),
    "no name": (b",a,b\n0,1,2\n", 1, 1, "", 1, "column 1 has no name"),
    "comma at each end": (b"a,b,\n1,2,\n", 1, 3, "", 1, "column 3 has no name"),
    "no header": (b"5.1,3.5,0\n4.9,3.0,0\n", 1, 1, "5.1", 3, "where the names of the columns should stand"),
    "semicolons": (b"a;b\n1;2\n", 1, 1, "a;b", 1, "separated by something else"),
    "infinity": (b"a,b\n1,2\n3,inf\n4,1e999\n", 3, "b", "inf", 2, "'inf' is not a finite number (2 such values)"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_told_by_place(tmp_path: Path, case: str) -> None:
    content, line, column, value, count, words = BROKEN[case]
    error = refused(tmp_path, content)
    assert words in error.message
    assert (error.code, error.line, error.column, error.value, error.count) == (
        "invalid_dataset",
        line,
        column,
        value,
        count,
    )
    assert str(error) == f"{error.message}. {error.hint}"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    if line is not None:
        assert f"line {line}" in error.message or line == 1


@pytest.mark.parametrize(
    ("types", "line", "column", "value", "count", "words"),
    [
        ({"b": "number"}, 3, "b", "x", 2, "'x' is not a finite number"),
        ({"a": "integer"}, 6, "a", "2.5", 1, "not an integer"),
        ({"c": "boolean"}, 2, "c", "yes", 2, "not true or false"),
        ({"d": "integer"}, 2, "d", "9007199254740993", 1, "not an integer of at most 9007199254740992"),
        ({"z": "text"}, None, "z", "text", None, "no such column"),
        ({"a": "date"}, None, "a", "date", None, "the type 'date'"),
    ],
)
def test_a_value_against_its_declared_type(tmp_path: Path, types, line, column, value, count, words) -> None:  # type: ignore[no-untyped-def]
    content = b'a,b,c,d\n1,2,yes,9007199254740993\n2,x,1,2\n7,"x\n",,\n2.5,,no,3\n'
    error = refused(tmp_path, content, types)
    assert words in error.message
    assert (error.line, error.column, error.value, error.count) == (line, column, value, count)


@pytest.mark.parametrize(
    "content",
    [
        b'a,b\n5" pipe,1\n6,2\n',  # an odd number of quotes, and nothing wrong
        b'a,b\n1,"x"',
        b'a,b\n1,"say ""hi"""\n',
        b'a,b\n1,"ends in a line break\n"\n',
        b'"a","b"\r\n"1","2"\r\n',
        b"a,b\n1,2\n\n\n3,4\n\n",
        b"0,1,2\n5,6,7\n",
    ],
)
def test_odd_looking_files_that_are_sound(tmp_path: Path, content: bytes) -> None:
    rows = [row for row in csv.reader(io.StringIO(content.decode(), newline="")) if row]
    found = values(read(tmp_path, content))
    assert list(found) == rows[0]
    for place, name in enumerate(rows[0]):
        assert [str(value) for value in found[name]] == [row[place].strip() for row in rows[1:]]


def test_any_table_that_pythons_csv_writes_is_read_back(tmp_path: Path) -> None:
    rng = random.Random(3)
    alphabet = ["a", "ß", '"', ",", "\n", "\r\n", " ", "1", ".", "😀", "'", ";"]
    for trial in range(40):
        width = rng.randint(2, 4)
        cells = [
            ["x" + "".join(rng.choices(alphabet, k=rng.randint(0, 6))) + "y" for _ in range(width)] for _ in range(9)
        ]
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator=rng.choice(["\n", "\r\n"])).writerows([[f"c{k}" for k in range(width)], *cells])
        folder = tmp_path / str(trial)
        folder.mkdir()
        found = values(read(folder, text.getvalue().encode()))
        assert [list(row) for row in zip(*found.values(), strict=True)] == cells


def test_many_blocks_give_one_column_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types and vocabularies that only a later block decides."""
    monkeypatch.setattr("service.csv_reader._BLOCK", 512)
    rows = [f"{k},{k if k < 900 else k + 0.5},{'x' if k == 990 else k},name {k % 300},\n" for k in range(1000)]
    table = read(tmp_path, ("i,n,t,w,e\n" + "".join(rows)).encode())
    assert [column["type"] for column in table.manifest["columns"]] == ["integer", "number", "text", "text", "number"]
    found = values(table)
    assert found["i"] == list(range(1000))
    assert found["n"] == [float(k) if k < 900 else k + 0.5 for k in range(1000)]
    assert found["t"] == ["x" if k == 990 else str(k) for k in range(1000)]
    assert found["w"] == [f"name {k % 300}" for k in range(1000)]
    broken = tmp_path / "broken"
    broken.mkdir()
    error = refused(broken, ("i,n,t,w,e\n" + "".join([*rows, "1,2\n"])).encode())
    assert (error.line, error.column) == (1002, "t")
    error = refused(broken, ("i,n,t,w,e\n" + "".join(rows)).encode(), {"t": "integer"})
    assert (error.line, error.column, error.value, error.count) == (992, "t", "x", 1)


def test_the_hash_is_of_the_typed_content(tmp_path: Path) -> None:
    def digest(content: bytes, types: dict[str, str] | None = None) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return str(read(folder, content, types).sha256)

    base = digest(b"a,b\n1,x\n2,\n")
    assert digest(b'"a", b\r\n 1 ,"x"\r\n2,NA\r\n') == base
    assert digest(b"a,b\n1,x\n2,\n", {"a": "number"}) != base
    for other in (b"a,c\n1,x\n2,\n", b"a,b\n1,x\n3,\n", b"a,b\n1,y\n2,\n", b"a,b\n2,\n1,x\n", b"b,a\nx,1\n,2\n"):
        assert digest(other) != base
    assert digest(b"a\n-0.0\n0.5\n") == digest(b"a\n0.0\n0.5\n")


def test_long_lists_of_values_are_left_out(tmp_path: Path) -> None:
    rows = "".join(f"{k},{k % 1000},u{k}\n" for k in range(1001))
    columns = read(tmp_path, ("a,b,c\n" + rows).encode()).manifest["columns"]
    assert [column["distinct"] for column in columns] == [1001, 1000, 1001]
    assert ["values" in column for column in columns] == [False, True, False]


def test_features_of_an_uploaded_table_are_those_of_its_rows_as_json(tmp_path: Path) -> None:
    """From the CSV to the network's input, once as a dataset and once as prediction rows."""
    table = read(tmp_path, b"x,c,f,y\n0.1, Ulm,true,1\n,NA,false,0\n1e-7,Bonn,,1\n")
    columns: dict[str, Column] = table.columns(table.names)
    preprocessing = Preprocessing.fit(
        PreprocessingSpec(("x", "c", "f"), ("y",), "classification"), columns, np.arange(3)
    )
    rows = [
        {"x": 0.1, "c": "Ulm", "f": True},
        {"x": None, "c": " NA", "f": False},
        {"x": 1e-7, "c": "Bonn ", "f": None},
    ]
    assert preprocessing.transform_records(rows).tobytes() == preprocessing.transform(columns, np.arange(3)).tobytes()


def run(folder: Path, content: bytes, limits: IngestLimits, types: dict[str, str] | None = None) -> IngestError:
    """The subprocess's refusal; it leaves nothing but the upload."""
    (folder / "upload").write_bytes(content)
    with pytest.raises(IngestError) as caught:
        ingest(folder, "csv", types, limits)
    assert [path.name for path in folder.iterdir()] == ["upload"]
    return caught.value


def test_a_refusal_crosses_from_the_subprocess_whole_and_leaves_nothing(tmp_path: Path) -> None:
    error = run(tmp_path, "a,b\n1,ü\n2\n".encode(), LIMITS)
    assert error.details() == {
        "line": 3,
        "column": "b",
        "value": "2",
        "count": 1,
        "hint": error.hint,
    }
    error = run(tmp_path, b"a,b\n" + b"1,2\n" * 1000 + b"x,y\n", LIMITS, {"b": "integer"})
    assert (error.line, error.column, error.value) == (1002, "b", "y")


def test_every_limit_ends_in_a_clear_message(tmp_path: Path) -> None:
    large = b"a,b\n" + b"".join(b"%d,name %d\n" % (k, k) for k in range(600_000))
    error = run(tmp_path, large, replace(LIMITS, file_bytes=100_000))
    assert (error.code, error.message) == (
        "too_large",
        "a column takes more than the 100000 bytes that a file may have",
    )
    for megabytes in range(60, 340, 20):  # too little to start, for Arrow's threads, for this table
        error = run(tmp_path, large, replace(LIMITS, memory_bytes=megabytes * 2**20))
        assert error.code == "too_large"
        assert f"needs more than the {megabytes / 1024:.3g} GiB of memory" in error.message
    error = run(tmp_path, large, replace(LIMITS, wall_seconds=0.01))
    assert (error.code, error.message) == ("too_large", "reading the file took longer than 0.01 s")
    error = run(tmp_path, b"a,b,c\n1,2,3\n", replace(LIMITS, columns=2))
    assert error.message == "line 1 names 3 columns; at most 2 are taken"


def test_nothing_is_imported_that_is_not_needed(tmp_path: Path) -> None:
    """Arrow would import pandas, which takes longer than a small file."""
    (tmp_path / "upload").write_bytes(b"a,b\n1,x\n2,y\n")
    script = f"""
import sys
from pathlib import Path
from service import ingest_process
from service.ingest import IngestLimits
ingest_process._ingest(Path({str(tmp_path)!r}), {{}}, IngestLimits())
assert "pyarrow" in sys.modules and "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_wide_table_takes_little_more_memory_than_a_narrow_one(tmp_path: Path) -> None:
    """MNIST's width, in several of the blocks that Arrow reserves for each column."""
    names = ",".join(f"pixel{place}" for place in range(784))
    row = ",".join(str(place % 256) for place in range(784))
    (tmp_path / "upload").write_text("\n".join([names, *[row] * 8000]) + "\n")
    found = ingest(tmp_path, "csv", None, IngestLimits(memory_bytes=2**30))
    assert (found["rows"], len(found["columns"])) == (8000, 784)


def test_processor_time_is_limited(tmp_path: Path) -> None:
    rows = b"".join(b"%d,%d,%d\n" % (k, k * 7, k * 13) for k in range(100_000))
    error = run(tmp_path, b"a,b,c\n" + rows * 60, replace(LIMITS, cpu_seconds=1))
    assert (error.code, error.message) == ("too_large", "reading the file took more than 1 s of processor time")


def test_a_finished_folder_is_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(b"a,b\n1,2\n")
    first = ingest(tmp_path, "csv", None)
    (tmp_path / "upload").unlink()
    assert ingest(tmp_path, "csv", None) == first


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="'parquet' is not supported yet"):
        ingest(tmp_path, "parquet", None)


def test_the_api_side_imports_nothing_heavy() -> None:
    script = "import sys, service.ingest; print({'numpy', 'pyarrow', 'core'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"
