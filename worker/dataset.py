"""A table on disk -> memory-mapped arrays that workers compute on: split, fitted, transformed, cached.

The cache entry's name is a hash of all that decides its content, so that every job, attempt and worker that needs the
same arrays finds them; an entry is complete once its folder has its name, and checked by hash before a job trusts it.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.class_weights import balanced
from core.columns import Column, distinct_values
from core.errors import DataError, SpecificationError
from core.preprocessing import Preprocessing, PreprocessingSpec
from core.targets import class_key
from worker.splits import Rows, Split, random_split, stratified_split, time_split
from worker.table import DatasetError, Table, open_table
from worker.warm_start import Kept, kept_preprocessing

__all__ = ["DataSpec", "DatasetError", "PreparedDataset", "open_prepared", "prepare"]

FORMAT = 1
MANIFEST = "prepared.json"
SPLITS = ("train", "validation", "test")
_ABANDONED_SECONDS = 86_400.0  # a temporary folder this old belongs to a process that died


@dataclass(frozen=True)
class DataSpec:
    """What a job reads, and how it is split. Everything but the folders decides the arrays.

    `validation` and `test` are fractions of the rows that have a target; `split_by` is random, stratified or time (then
    `split_column` orders the rows: the newest are the test rows, those before them the validation rows).
    `class_weight`: balanced, or pairs of a class (as a JSON key) and its weight, 1 for the others; training rows count
    by it. `fitted`: a preprocessing of the same features and targets to be taken as it is, and not fitted anew.
    """

    dataset_folder: str
    dataset_sha256: str
    preprocessing: PreprocessingSpec
    weight_column: str | None
    validation: float
    test: float
    split_by: str
    split_column: str | None
    split_seed: int
    cache_folder: str
    class_weight: str | tuple[tuple[str, float], ...] | None = None
    fitted: Kept | None = None

    def key(self) -> str:
        """64 hex digits: equal for equal arrays."""
        matters = {
            "format": FORMAT,
            "dataset": self.dataset_sha256,
            "preprocessing": self.preprocessing.to_json(),
            "weight_column": self.weight_column,
            "split": [self.validation, self.test, self.split_by, self.split_column, self.split_seed],
        }
        if self.class_weight is not None:
            matters["class_weight"] = self.class_weight
        if self.fitted is not None:
            matters["fitted"] = self.fitted.sha256
        return hashlib.sha256(json.dumps(matters, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class PreparedDataset:
    """The arrays of one job, on disk. `rows` counts each split; `dropped_rows` had no target and are in none.
    `sha256` is the manifest's, which holds that of each file.

    `class_weights`, in the order of the preprocessing's classes, are to be folded into the training rows' weights; they
    are not in the arrays.
    """

    folder: Path
    preprocessing: Preprocessing
    rows: dict[str, int]
    dropped_rows: int
    weighted: bool
    class_weights: tuple[float, ...] | None = None
    sha256: str = ""

    def arrays(self, split: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any], npt.NDArray[np.float32] | None]:
        """Features float32 (n, width), targets int32 (n,) or float32 (n, outputs), row weights float32 (n,) if any.

        All are read-only and memory-mapped.
        """
        features = self._load("features", split)
        weights = self._load("weights", split) if self.weighted else None
        return features, self._load("targets", split), weights

    def _load(self, kind: str, split: str) -> npt.NDArray[Any]:
        if split not in SPLITS:
            raise DatasetError(str(self.folder), f"no split {split!r}; it has {', '.join(SPLITS)}")
        path = self.folder / f"{kind}.{split}.npy"
        # A plain view of the map: np.memmap would make every batch taken from it a memmap again, at a cost.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def prepare(spec: DataSpec) -> PreparedDataset:
    """The arrays of `spec`, from the cache or built now; a damaged entry is rebuilt. Safe for many processes at once.

    DatasetError: no such dataset, or another one than the spec's. DataError, SpecificationError: its columns do not
    suit the spec, in words for the user. WarmStartDamaged: `fitted` is not what was kept.
    """
    cache = Path(spec.cache_folder)
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / spec.key()
    if folder.exists():
        try:
            return _open(folder, check_hashes=True)
        except DatasetError:
            pass  # damaged: another takes its place below
    _sweep(cache)
    plain = None if spec.class_weight is None else prepare(replace(spec, class_weight=None))
    building = Path(tempfile.mkdtemp(prefix=f".{spec.key()[:16]}.", dir=cache))
    try:
        if plain is None:
            _build(spec, building)
        else:
            _add_class_weights(spec, plain, building)
        return _publish(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def open_prepared(folder: str | Path, check_hashes: bool = False) -> PreparedDataset:
    """An entry that `prepare` gave; DatasetError where it is gone or a file of it has another size, or hash."""
    return _open(Path(folder), check_hashes)


def _open(folder: Path, check_hashes: bool) -> PreparedDataset:
    try:
        content = (folder / MANIFEST).read_bytes()
        manifest, sha256 = json.loads(content), hashlib.sha256(content).hexdigest()
        if manifest["format"] != FORMAT:
            raise DatasetError(str(folder), f"not prepared in format {FORMAT}")
        for name, (size, wanted) in manifest["files"].items():
            path = folder / Path(name).name
            if path.stat().st_size != size or (check_hashes and file_sha256(path) != wanted):
                raise DatasetError(str(path), "damaged")
        preprocessing = Preprocessing.from_json(manifest["preprocessing"])
        rows = {split: int(manifest["rows"][split]) for split in SPLITS}
        dropped, weighted = int(manifest["dropped_rows"]), bool(manifest["weighted"])
        weights = manifest.get("class_weights")
        return PreparedDataset(
            folder, preprocessing, rows, dropped, weighted, None if weights is None else tuple(weights), sha256
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SpecificationError) as error:
        raise DatasetError(str(folder), f"unreadable ({error})") from error


def _build(spec: DataSpec, folder: Path) -> None:
    """Everything of one entry into `folder`, the manifest last."""
    table = open_table(spec.dataset_folder)
    if table.sha256 != spec.dataset_sha256:
        raise DatasetError(spec.dataset_folder, f"its hash is {table.sha256}, the job's {spec.dataset_sha256}")
    wanted = spec.preprocessing
    extra = [name for name in (spec.weight_column, spec.split_column) if name is not None]
    columns = table.columns(dict.fromkeys((*wanted.features, *wanted.targets, *extra)))
    usable = _rows_with_targets(table, columns, wanted.targets)
    classes = distinct_values(columns[wanted.targets[0]], usable) if wanted.task == "classification" else None
    split = _split(spec, columns, usable, classes)
    if spec.fitted is None:
        fitted = Preprocessing.fit(wanted, columns, split.train, classes)
    else:
        fitted = kept_preprocessing(spec.fitted)
    weights = None if spec.weight_column is None else _weights(columns[spec.weight_column], usable, split)
    for name, rows in split.named().items():
        features = np.lib.format.open_memmap(
            folder / f"features.{name}.npy", mode="w+", dtype=np.float32, shape=(len(rows), fitted.width)
        )
        fitted.transform(columns, rows, features)
        features.flush()
        np.save(folder / f"targets.{name}.npy", fitted.transform_targets(columns, rows))
        if weights is not None:
            np.save(folder / f"weights.{name}.npy", weights[rows])
    manifest = {
        "format": FORMAT,
        "rows": {name: len(rows) for name, rows in split.named().items()},
        "dropped_rows": table.rows - len(usable),
        "weighted": weights is not None,
        "preprocessing": fitted.to_json(),
        "files": {path.name: [path.stat().st_size, file_sha256(path)] for path in sorted(folder.iterdir())},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))


def _add_class_weights(spec: DataSpec, plain: PreparedDataset, folder: Path) -> None:
    """The entry `plain` again, its files linked and not copied where the file system can, with class weights."""
    manifest = json.loads((plain.folder / MANIFEST).read_bytes())
    for name in manifest["files"]:
        try:
            os.link(plain.folder / name, folder / name)
        except OSError:
            shutil.copyfile(plain.folder / name, folder / name)
    weights = _class_weights(spec, plain.preprocessing.classes, plain.arrays("train")[1])
    (folder / MANIFEST).write_text(json.dumps(manifest | {"class_weights": weights}))


def _class_weights(spec: DataSpec, classes: Sequence[Any] | None, targets: npt.NDArray[Any]) -> list[float]:
    """One a class; `targets` are the class numbers of the training rows."""
    if classes is None:
        raise SpecificationError("training.class_weight", spec.class_weight, "null: a regression has no classes")
    if not isinstance(spec.class_weight, tuple):
        return [float(weight) for weight in balanced(targets, len(classes))]
    given, keys = dict(spec.class_weight), [class_key(value) for value in classes]
    for label in given:
        if label not in keys:
            raise SpecificationError("training.class_weight", label, f"one of the classes {', '.join(keys[:10])}, ...")
    return [given.get(key, 1.0) for key in keys]


def _rows_with_targets(table: Table, columns: Mapping[str, Column], targets: tuple[str, ...]) -> Rows:
    missing = np.zeros(table.rows, dtype=bool)
    for name in targets:
        missing |= columns[name].missing()
    usable = np.flatnonzero(~missing).astype(np.int64)
    if len(usable) == 0:
        raise SpecificationError("target", ", ".join(targets), "at least one row that has a value")
    return usable


def _split(spec: DataSpec, columns: Mapping[str, Column], rows: Rows, classes: tuple[Any, ...] | None) -> Split:
    if spec.split_by == "random":
        return random_split(rows, spec.validation, spec.test, spec.split_seed)
    if spec.split_by == "stratified":
        if classes is None:
            raise SpecificationError("split.by", "stratified", "random or time: a regression has no classes")
        column = columns[spec.preprocessing.targets[0]]
        numbers = np.unique(column.values[rows], return_inverse=True)[1].astype(np.int32)
        return stratified_split(rows, numbers, spec.validation, spec.test, spec.split_seed)
    if spec.split_by != "time":
        raise SpecificationError("split.by", spec.split_by, "one of random, stratified, time")
    if spec.split_column is None:
        raise SpecificationError("split.column", None, "the column that orders the rows in time")
    column = columns[spec.split_column]
    if (gaps := column.missing()[rows]).any():
        raise DataError(int(rows[np.argmax(gaps)]), column.name, None, "a time in every row, for a split by time")
    return time_split(rows, column.values[rows], spec.validation, spec.test)


def _weights(column: Column, rows: Rows, split: Split) -> npt.NDArray[np.float32]:
    """float32, one a row of the table; those of `rows` are finite, none is negative, and no split's are all 0."""
    if column.type == "text":
        raise SpecificationError("weight_column", column.name, "a column of numbers (it holds text)")
    with np.errstate(over="ignore"):
        weights: npt.NDArray[np.float32] = column.values.astype(np.float32)
    used = weights[rows]
    wrong = ~((used >= 0) & np.isfinite(used))
    if wrong.any():
        row = int(rows[np.argmax(wrong)])
        raise DataError(row, column.name, column.value(row), "a weight of at least 0 in every row")
    for name, part in split.named().items():
        if len(part) and not weights[part].any():
            raise SpecificationError("weight_column", column.name, f"a weight above 0 in some {name} row")
    return weights


def _publish(building: Path, folder: Path) -> PreparedDataset:
    """Give the finished entry its name; where another process was first and its entry is sound, take that one."""
    while True:
        try:
            os.rename(building, folder)
            return _open(folder, check_hashes=False)
        except OSError:
            if not folder.exists():
                raise
        try:
            return _open(folder, check_hashes=True)
        except DatasetError:
            _discard(folder)


def _discard(folder: Path) -> None:
    """Take a damaged entry away, at once for everybody; who has it mapped keeps what is mapped."""
    away = Path(tempfile.mkdtemp(prefix=".damaged.", dir=folder.parent))
    try:
        os.rename(folder, away / "entry")
    except FileNotFoundError:
        pass  # another process was faster
    finally:
        shutil.rmtree(away, ignore_errors=True)


def _sweep(cache: Path) -> None:
    """Remove what processes that died left behind."""
    for path in cache.glob(".*"):
        try:
            if path.is_dir() and time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:
            continue  # its owner was faster


def file_sha256(path: Path) -> str:
    """64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
