"""Columns, block by block, -> the dataset's folder: one array a column, then dataset.json, which makes it a dataset."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from core.columns import MISSING_TOKENS, typed
from core.features import mean_and_deviation
from service.ingest import COLUMNS, MANIFEST
from worker.table import FORMAT, Table

_LISTED = 1000  # distinct values up to which dataset.json lists them


class ColumnStore:
    """Writes one dataset into `folder`: start, add every column's blocks in order, finish."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: tuple[str, ...] = ()
        self._types: tuple[str, ...] = ()
        self._rows = 0
        self._texts: dict[int, list[pa.DictionaryArray]] = {}

    def start(self, names: Sequence[str], types: Sequence[str], rows: int) -> None:
        """Fix the columns and the number of rows."""
        self._names, self._types, self._rows = tuple(names), tuple(types), rows
        (self._folder / COLUMNS).mkdir(exist_ok=True)
        for place, kind in enumerate(types):
            with open(self._path(place), "wb") as file:
                dtype = np.dtype(np.int32 if kind == "text" else np.float64)
                shape = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows,)}
                np.lib.format.write_array_header_1_0(file, shape)

    def add_numbers(self, place: int, values: npt.NDArray[np.float64]) -> None:
        """Append a block to an integer, number or boolean column: float64, NaN where missing."""
        canonical = values + 0.0  # no -0.0: equal content has an equal hash
        canonical[np.isnan(canonical)] = np.nan
        self._append(place, canonical)

    def add_text(self, place: int, values: pa.StringArray) -> None:
        """Append a block to a text column; null where missing. Written by `finish`, once all values are known."""
        self._texts.setdefault(place, []).append(values.dictionary_encode())

    def finish(self, upload_bytes: int) -> dict[str, Any]:
        """Write the text columns and dataset.json, all of it safely on the disk; returns dataset.json's content."""
        for place, blocks in self._texts.items():
            self._write_text(place, blocks)
        self._texts.clear()
        entries = [self._entry(place) for place in range(len(self._names))]
        manifest = {"format": FORMAT, "rows": self._rows, "bytes": upload_bytes, "sha256": "", "columns": entries}
        table = Table(self._folder, manifest)
        digest = hashlib.sha256(json.dumps([FORMAT, self._rows]).encode())
        for entry in entries:
            self._describe(table, entry, digest)
        manifest["sha256"] = digest.hexdigest()
        self._publish(manifest)
        return manifest

    def _path(self, place: int) -> Path:
        return self._folder / COLUMNS / f"c{place}.npy"

    def _vocabulary_path(self, place: int) -> Path:
        return self._folder / COLUMNS / f"c{place}.vocabulary.json"

    def _append(self, place: int, values: npt.NDArray[Any]) -> None:
        # Opened for every block: there may be more columns than a process may have open files.
        with open(self._path(place), "ab") as file:
            file.write(np.ascontiguousarray(values).data)

    def _write_text(self, place: int, blocks: list[pa.DictionaryArray]) -> None:
        unified = pa.chunked_array(blocks).unify_dictionaries()
        dictionary = unified.chunk(unified.num_chunks - 1).dictionary  # every block's codes point into it by now
        raw = dictionary.to_pylist()
        stripped = [value.strip() for value in raw]
        table = np.full(len(raw) + 1, -1, dtype=np.int32)
        if stripped == raw:
            order = pc.sort_indices(dictionary)  # by UTF-8 bytes, which is Python's order; and much faster
            vocabulary = dictionary.take(order).to_pylist()
            table[order.to_numpy()] = np.arange(len(raw), dtype=np.int32)
        else:
            vocabulary = sorted(set(stripped) - MISSING_TOKENS)
            index = {value: code for code, value in enumerate(vocabulary)}
            table[:-1] = [index.get(value, -1) for value in stripped]
        for block in unified.chunks:
            self._append(place, table[block.indices.fill_null(len(raw)).to_numpy(zero_copy_only=False)])
        self._vocabulary_path(place).write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")

    def _entry(self, place: int) -> dict[str, Any]:
        entry: dict[str, Any] = {"name": self._names[place], "type": self._types[place], "file": self._path(place).name}
        if entry["type"] == "text":
            entry["vocabulary_file"] = self._vocabulary_path(place).name
        return entry

    def _describe(self, table: Table, entry: dict[str, Any], digest: "hashlib._Hash") -> None:
        """Add the summary to `entry`, and the column's content to `digest`."""
        column = table.columns([entry["name"]])[entry["name"]]
        missing = int(np.count_nonzero(column.missing()))
        digest.update(json.dumps([entry["name"], entry["type"], list(column.vocabulary)]).encode())
        digest.update(np.ascontiguousarray(column.values, column.values.dtype.newbyteorder("<")).data)
        entry["missing"] = missing
        if column.type == "text":
            seen = np.array(column.vocabulary[: _LISTED + 1], dtype=object)
            entry["distinct"] = len(column.vocabulary)
            listed: list[Any] = seen.tolist()
        else:
            present = column.values[~np.isnan(column.values)]
            seen = np.unique(present)
            entry["distinct"] = len(seen)
            listed = [typed(column.type, number) for number in seen[: _LISTED + 1].tolist()]
            if len(seen):
                mean, deviation = mean_and_deviation(column, np.arange(len(column.values)))
                entry |= {"minimum": typed(column.type, float(seen[0])), "maximum": typed(column.type, float(seen[-1]))}
                entry |= {"mean": mean, "deviation": deviation if len(seen) > 1 else 0.0}
        if len(listed) <= _LISTED:
            entry["values"] = listed

    def _publish(self, manifest: dict[str, Any]) -> None:
        for path in (self._folder / COLUMNS).iterdir():
            _fsync(path)
        _fsync(self._folder / COLUMNS)
        part = self._folder / (MANIFEST + ".part")
        part.write_text(json.dumps(manifest, ensure_ascii=False, allow_nan=False), encoding="utf-8")
        _fsync(part)
        os.replace(part, self._folder / MANIFEST)
        _fsync(self._folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
