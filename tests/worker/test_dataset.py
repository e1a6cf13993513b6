import json
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.columns import Column, number_column, text_column
from core.errors import DataError, SpecificationError
from core.preprocessing import PreprocessingSpec
from worker.dataset import DatasetError, DataSpec, PreparedDataset, open_prepared, prepare
from worker.splits import random_split, split_sizes, stratified_split, time_split
from worker.table import open_table

ROWS = 200
SPEC = PreprocessingSpec(("x", "city"), ("label",), "classification")


def columns() -> list[Column]:
    rng = np.random.default_rng(5)
    labels = [["a", "b", "c"][k] for k in rng.choice(3, ROWS, p=[0.7, 0.2, 0.1])]
    cities = [["Ulm", "Köln", None][k] for k in rng.integers(0, 3, ROWS)]
    x = rng.normal(50, 9, ROWS)
    x[::17] = np.nan
    return [
        Column("x", "number", x),
        text_column("city", cities),
        text_column("label", [None if k in (3, 77) else label for k, label in enumerate(labels)]),
        number_column("cost", [None if k == 5 else float(k % 13) for k in range(ROWS)]),
        number_column("row", [float(k) for k in range(ROWS)], "integer"),
        number_column("weight", [float(k % 3) for k in range(ROWS)]),
        text_column("day", [f"2024-{1 + k % 12:02}-{1 + k % 28:02}" for k in range(ROWS)]),
        number_column("gap", [None if k == 9 else 1.0 for k in range(ROWS)]),
    ]


def write_table(folder: Path, sha256: str = "c" * 64) -> Path:
    """A dataset as worker.table documents it, written without the service's code."""
    (folder / "columns").mkdir(parents=True)
    entries = []
    for place, column in enumerate(columns()):
        entry = {"name": column.name, "type": column.type, "file": f"c{place}.npy"}
        np.save(folder / "columns" / entry["file"], column.values)
        if column.type == "text":
            entry["vocabulary_file"] = f"c{place}.vocabulary.json"
            (folder / "columns" / entry["vocabulary_file"]).write_text(json.dumps(column.vocabulary))
        entries.append(entry)
    manifest = {"format": 1, "rows": ROWS, "bytes": 1, "sha256": sha256, "columns": entries}
    (folder / "dataset.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    folder = write_table(tmp_path / "table")
    return DataSpec(
        str(folder), "c" * 64, SPEC, None, 0.2, 0.1, "random", None, 0, cache_folder=str(tmp_path / "prepared")
    )


def traced(spec: DataSpec) -> dict[str, np.ndarray]:
    """The table's row numbers in each split, seen through a feature that is the row number itself."""
    wanted = replace(spec.preprocessing, features=("row",), numeric="none")
    prepared = prepare(replace(spec, preprocessing=wanted))
    return {split: prepared.arrays(split)[0][:, 0].astype(int) for split in ("train", "validation", "test")}


def test_the_arrays_are_the_tables_rows_through_the_preprocessing(spec: DataSpec) -> None:
    prepared = prepare(spec)
    assert prepared.rows == {"train": 138, "validation": 40, "test": 20}
    assert prepared.dropped_rows == 2
    table = open_table(spec.dataset_folder).columns(("x", "city", "label"))
    for split, rows in traced(spec).items():
        features, targets, weights = prepared.arrays(split)
        assert features.tobytes() == prepared.preprocessing.transform(table, rows).tobytes()
        assert targets.tobytes() == prepared.preprocessing.transform_targets(table, rows).tobytes()
        assert (features.dtype, targets.dtype, weights) == (np.float32, np.int32, None)
        assert not features.flags.writeable
    refitted = type(prepared.preprocessing).fit(SPEC, table, traced(spec)["train"], ("a", "b", "c"))
    assert refitted.to_json() == prepared.preprocessing.to_json()


def test_each_row_with_a_target_is_in_one_split_and_training_rows_are_shuffled(spec: DataSpec) -> None:
    parts = traced(spec)
    together = np.concatenate(list(parts.values()))
    assert sorted(together.tolist()) == [k for k in range(ROWS) if k not in (3, 77)]
    assert (np.diff(parts["train"]) < 0).any()
    again = traced(replace(spec, cache_folder=spec.cache_folder + "2"))
    other = traced(replace(spec, split_seed=1))
    for split, rows in parts.items():
        assert again[split].tolist() == rows.tolist()
        assert other[split].tolist() != rows.tolist()


def test_stratified_parts_hold_every_class_in_its_share(spec: DataSpec) -> None:
    prepared = prepare(replace(spec, split_by="stratified"))
    counts = {split: np.bincount(prepared.arrays(split)[1], minlength=3) for split in prepared.rows}
    total = sum(counts.values())
    assert prepared.rows == {"train": 138, "validation": 40, "test": 20}
    for split, fraction in (("validation", 0.2), ("test", 0.1)):
        assert np.abs(counts[split] - total * fraction).max() <= 1.0
    regression = replace(SPEC, targets=("cost",), task="regression")
    with pytest.raises(SpecificationError, match="stratified"):
        prepare(replace(spec, split_by="stratified", preprocessing=regression))


def test_a_split_by_time_trains_on_the_oldest_and_tests_on_the_newest(spec: DataSpec) -> None:
    parts = traced(replace(spec, split_by="time", split_column="row"))
    assert parts["train"].tolist() == [k for k in range(140) if k not in (3, 77)]
    assert parts["validation"].tolist() == list(range(140, 180))
    assert parts["test"].tolist() == list(range(180, 200))
    days = traced(replace(spec, split_by="time", split_column="day"))
    name = open_table(spec.dataset_folder).columns(("day",))["day"]
    assert max(map(name.value, days["train"])) <= min(map(name.value, days["validation"]))
    with pytest.raises(DataError, match="row 9, column 'gap'"):
        prepare(replace(spec, split_by="time", split_column="gap"))
    with pytest.raises(SpecificationError, match=r"split\.column"):
        prepare(replace(spec, split_by="time"))
    with pytest.raises(SpecificationError, match=r"split\.by"):
        prepare(replace(spec, split_by="group"))


@pytest.mark.parametrize(
    ("rows", "validation", "test", "sizes"),
    [
        (1000, 0.2, 0.1, (700, 200, 100)),
        (10, 0.0, 0.0, (10, 0, 0)),
        (3, 0.01, 0.01, (1, 1, 1)),
        (2, 0.2, 0.2, (2, 0, 0)),
        (2, 0.5, 0.5, (1, 0, 1)),
        (1, 0.9, 0.0, (1, 0, 0)),
        (0, 0.5, 0.5, (0, 0, 0)),
        (7, 0.5, 0.5, (1, 3, 3)),
    ],
)
def test_split_sizes(rows: int, validation: float, test: float, sizes: tuple) -> None:
    assert split_sizes(rows, validation, test) == sizes


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 17, 100])
def test_every_way_to_split_keeps_every_row_once(rows: int) -> None:
    numbers = np.arange(rows, dtype=np.int64) * 3
    classes = (np.arange(rows) % 4).astype(np.int32)
    for split in (
        random_split(numbers, 0.3, 0.2, 1),
        stratified_split(numbers, classes, 0.3, 0.2, 1),
        time_split(numbers, -numbers.astype(float), 0.3, 0.2),
    ):
        parts = [split.train, split.validation, split.test]
        assert tuple(map(len, parts)) == split_sizes(rows, 0.3, 0.2)
        assert sorted(np.concatenate(parts).tolist()) == numbers.tolist()


def test_a_rare_class_trains_before_it_tests() -> None:
    classes = np.array([0] * 40 + [1, 1], dtype=np.int32)
    for seed in range(20):
        split = stratified_split(np.arange(42), classes, 0.2, 0.1, seed)
        assert {40, 41} & set(split.train.tolist())


def test_an_empty_split_has_empty_arrays(spec: DataSpec) -> None:
    prepared = prepare(replace(spec, test=0.0))
    features, targets, _ = prepared.arrays("test")
    assert features.shape == (0, prepared.preprocessing.width)
    assert targets.shape == (0,)
    with pytest.raises(DatasetError, match="no split 'tests'"):
        prepared.arrays("tests")


def test_weights_and_several_targets(spec: DataSpec) -> None:
    regression = PreprocessingSpec(("row",), ("cost", "x"), "regression", numeric="none")
    prepared = prepare(replace(spec, preprocessing=regression, weight_column="weight"))
    assert prepared.dropped_rows == len({5, *range(0, ROWS, 17)})
    features, targets, weights = prepared.arrays("train")
    assert targets.shape == (len(features), 2)
    assert weights is not None
    assert weights.dtype == np.float32
    assert weights.tolist() == (features[:, 0] % 3).tolist()
    assert prepare(replace(spec, weight_column="weight", test=0.0)).rows["test"] == 0
    scales, means = prepared.preprocessing.target_scales, prepared.preprocessing.target_means
    np.testing.assert_allclose(targets[:, 0] * scales[0] + means[0], features[:, 0] % 13, atol=1e-5)


@pytest.mark.parametrize("name", ["gap", "x"])
def test_a_weight_that_is_missing_is_refused(spec: DataSpec, name: str) -> None:
    with pytest.raises(DataError, match="a weight of at least 0 in every row"):
        prepare(replace(spec, preprocessing=replace(SPEC, features=("row",)), weight_column=name))
    with pytest.raises(SpecificationError, match="holds text"):
        prepare(replace(spec, weight_column="city"))


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_a_split_without_any_weight_is_refused(spec: DataSpec, name: str) -> None:
    """Its loss would be nothing divided by nothing."""
    weights = np.ones(ROWS)
    weights[traced(spec)[name]] = 0.0
    np.save(Path(spec.dataset_folder) / "columns" / "c5.npy", weights)
    with pytest.raises(SpecificationError, match=f"a weight above 0 in some {name} row"):
        prepare(replace(spec, weight_column="weight"))


def test_an_entry_is_built_once_and_its_name_depends_on_content_alone(spec: DataSpec, tmp_path: Path) -> None:
    first = prepare(spec)
    stamp = (first.folder / "prepared.json").stat().st_mtime_ns
    moved = write_table(tmp_path / "elsewhere")
    again = prepare(replace(spec, dataset_folder=str(moved)))
    assert again.folder == first.folder
    assert (again.folder / "prepared.json").stat().st_mtime_ns == stamp
    keys = {
        replace(spec, **change).key()
        for change in (
            {},
            {"dataset_sha256": "d" * 64},
            {"validation": 0.3},
            {"test": 0.2},
            {"split_by": "stratified"},
            {"split_column": "row"},
            {"split_seed": 1},
            {"weight_column": "weight"},
            {"preprocessing": replace(SPEC, unseen="error")},
        )
    }
    assert len(keys) == 9
    assert [path.name for path in Path(spec.cache_folder).iterdir()] == [spec.key()]


def _content(prepared: PreparedDataset) -> list[bytes]:
    return [array.tobytes() for split in prepared.rows for array in prepared.arrays(split)[:2]]


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "manifest", "emptied", "file"])
def test_a_damaged_entry_is_rebuilt(spec: DataSpec, damage: str) -> None:
    prepared = prepare(spec)
    folder, expected = prepared.folder, _content(prepared)
    features = folder / "features.train.npy"
    content = features.read_bytes()
    if damage == "flip":
        features.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        features.write_bytes(content[:-1])
    elif damage == "gone":
        features.unlink()
    elif damage == "manifest":
        (folder / "prepared.json").write_text("[]")
    else:
        for path in folder.iterdir():
            path.unlink()
        if damage == "file":
            folder.rmdir()
            folder.write_text("not a folder")
    assert _content(prepare(spec)) == expected
    assert [path.name for path in Path(spec.cache_folder).iterdir()] == [spec.key()]


def test_open_prepared_gives_the_same_and_notices_what_is_gone(spec: DataSpec) -> None:
    prepared = prepare(spec)
    opened = open_prepared(prepared.folder)
    assert _content(opened) == _content(prepared)
    assert (opened.rows, opened.dropped_rows) == (prepared.rows, prepared.dropped_rows)
    assert opened.preprocessing.to_json() == prepared.preprocessing.to_json()
    (prepared.folder / "targets.test.npy").unlink()
    with pytest.raises(DatasetError):
        open_prepared(prepared.folder)
    with pytest.raises(DatasetError):
        open_prepared(prepared.folder.parent / "nothing")


def _prepare_when_told(spec: DataSpec, barrier, answers) -> None:  # type: ignore[no-untyped-def]
    barrier.wait(20)
    answers.put(str(prepare(spec).folder))


def test_many_processes_may_prepare_one_entry_at_once(spec: DataSpec) -> None:
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_prepare_when_told, args=(spec, barrier, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    folders = {answers.get(timeout=20) for _ in processes}
    for process in processes:
        process.join()
    assert folders == {str(Path(spec.cache_folder) / spec.key())}
    assert [path.name for path in Path(spec.cache_folder).iterdir()] == [spec.key()]


def test_a_failure_leaves_nothing_and_what_a_dead_process_left_is_swept(spec: DataSpec) -> None:
    cache = Path(spec.cache_folder)
    with pytest.raises(SpecificationError, match="at least two classes"):
        prepare(replace(spec, preprocessing=replace(SPEC, targets=("gap",))))
    assert list(cache.iterdir()) == []
    old, young = cache / ".dead.abc", cache / ".alive.abc"
    old.mkdir()
    young.mkdir()
    os.utime(old, (time.time() - 2e5,) * 2)
    prepare(spec)
    assert sorted(path.name for path in cache.iterdir()) == sorted([young.name, spec.key()])


def test_a_dataset_that_is_another_one_or_damaged_is_refused(spec: DataSpec, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="its hash is"):
        prepare(replace(spec, dataset_sha256="e" * 64))
    with pytest.raises(DatasetError, match="no column 'y'"):
        prepare(replace(spec, preprocessing=replace(SPEC, features=("y",))))
    with pytest.raises(DatasetError, match="unreadable"):
        prepare(replace(spec, dataset_folder=str(tmp_path)))
    folder = Path(spec.dataset_folder)
    np.save(folder / "columns" / "c0.npy", np.zeros(3))
    with pytest.raises(DatasetError, match=r"holds float64 \(3,\), not 200 number values"):
        prepare(spec)
    (folder / "dataset.json").write_text('{"format": 2}')
    with pytest.raises(DatasetError, match="format 1"):
        open_table(folder)
