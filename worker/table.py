"""A dataset on disk, as the ingestion wrote it: one array a column, and dataset.json that describes them.

FOLDER/dataset.json                 written last: a folder without it is no dataset
FOLDER/columns/c0.npy               float64 (rows,), NaN = missing; or, for text, int32 codes, -1 = missing
FOLDER/columns/c3.vocabulary.json   the sorted values of a text column
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.columns import COLUMN_TYPES, Column

FORMAT = 1
MANIFEST = "dataset.json"


class DatasetError(Exception):
    """The dataset, or the arrays prepared from it, cannot be used: `path`, and the `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Table:
    """An opened dataset: its folder and the content of dataset.json."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.manifest["rows"])

    @property
    def sha256(self) -> str:
        """Hash of the typed content."""
        return str(self.manifest["sha256"])

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, in the file's order."""
        return tuple(entry["name"] for entry in self.manifest["columns"])

    def columns(self, names: Iterable[str]) -> dict[str, Column]:
        """The columns of these names, memory-mapped; DatasetError for one that is absent or damaged."""
        entries = {entry["name"]: entry for entry in self.manifest["columns"]}
        columns = {}
        for name in names:
            if name not in entries:
                raise DatasetError(str(self.folder), f"no column {name!r}; it has {', '.join(entries)}")
            columns[name] = self._column(entries[name])
        return columns

    def _column(self, entry: dict[str, Any]) -> Column:
        path = self.folder / "columns" / Path(entry["file"]).name
        text = entry["type"] == "text"
        try:
            values = np.load(path, mmap_mode="r", allow_pickle=False)
            vocabulary: tuple[str, ...] = ()
            if text:
                vocabulary = tuple(json.loads((path.parent / Path(entry["vocabulary_file"]).name).read_bytes()))
        except (OSError, ValueError) as error:
            raise DatasetError(str(path), f"unreadable ({error})") from error
        if values.shape != (self.rows,) or values.dtype != (np.int32 if text else np.float64):
            raise DatasetError(
                str(path), f"holds {values.dtype} {values.shape}, not {self.rows} {entry['type']} values"
            )
        # A plain view of the map: np.memmap would make every slice and gather of it a memmap again, at a cost.
        return Column(entry["name"], entry["type"], np.asarray(values), vocabulary)


def open_table(folder: str | Path) -> Table:
    """The dataset in `folder`; DatasetError where there is none, or one of a format that we do not know."""
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DatasetError(str(path), f"unreadable ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DatasetError(str(path), f"not a dataset of format {FORMAT}")
    if any(entry["type"] not in COLUMN_TYPES for entry in manifest["columns"]):
        raise DatasetError(str(path), "a column of an unknown type")
    return Table(Path(folder), manifest)
