"""Rows that a benchmark holds in memory as a prepared dataset, without the table and the columns that it came from."""

import hashlib
import json
from pathlib import Path

import numpy as np

from benchmarks.contenders import Array
from core.columns import Column
from core.preprocessing import Preprocessing, PreprocessingSpec
from worker.dataset import FORMAT, MANIFEST, SPLITS, PreparedDataset, open_prepared


def write_prepared(folder: Path, features: Array, targets: Array, test: int = 0) -> PreparedDataset:
    """`features` (n, width) and the class numbers `targets` (n,); the last `test` rows are the test rows."""
    folder.mkdir(parents=True)
    end = len(features) - test
    bounds = {"train": slice(0, end), "validation": slice(end, end), "test": slice(end, None)}
    for split in SPLITS:
        np.save(folder / f"features.{split}.npy", features[bounds[split]].astype(np.float32))
        np.save(folder / f"targets.{split}.npy", targets[bounds[split]].astype(np.int32))
    manifest = {
        "format": FORMAT,
        "rows": {split: len(targets[bounds[split]]) for split in SPLITS},
        "dropped_rows": 0,
        "weighted": False,
        "preprocessing": _unchanged(features.shape[1], int(targets.max()) + 1).to_json(),
        "files": {
            path.name: [path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()]
            for path in sorted(folder.iterdir())
        },
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return open_prepared(folder)


def _unchanged(width: int, classes: int) -> Preprocessing:
    """Features as they are, one class a number."""
    names = tuple(f"p{number}" for number in range(width))
    spec = PreprocessingSpec(names, ("label",), "classification", numeric="none")
    rows = np.arange(classes, dtype=np.int64)
    columns = {name: Column(name, "number", np.zeros(classes)) for name in names}
    columns["label"] = Column("label", "integer", rows.astype(np.float64))
    return Preprocessing.fit(spec, columns, rows, tuple(rows.tolist()))
