"""The subprocess of one ingestion: limits itself, reads the file, writes the dataset, says on its output what is wrong.

    python -m service.ingest_process FOLDER < {"column_types": {...}, "limits": {...}}

Exit status 0: FOLDER/dataset.json is written. REFUSED: an IngestError as JSON on standard output.
"""

import errno
import json
import os
import resource
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

from service.ingest import REFUSED, UPLOAD, IngestError, IngestLimits, out_of_memory


class _WithoutPandas(MetaPathFinder):
    """Arrow imports pandas where it can, to know its objects: most of a small file's time, and of its memory.

    And an import that runs out of memory half-way ends in an error that says anything but that.
    """

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("not needed here", name=fullname)


def main() -> int:
    """Returns the exit status."""
    folder = Path(sys.argv[1])
    request = json.load(sys.stdin)
    limits = IngestLimits(**request["limits"])
    _limit(limits)
    try:
        _ingest(folder, request["column_types"], limits)
    except IngestError as error:
        return _refuse(error)
    except MemoryError:  # Arrow's own is a child of it
        return _refuse(out_of_memory(limits))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _refuse(IngestError("disk_full", "the disk is full", hint="Free some space and upload again."))
        if error.errno == errno.EFBIG:
            message = f"a column takes more than the {limits.file_bytes} bytes that a file may have"
            return _refuse(IngestError("too_large", message, hint="Upload fewer rows."))
        raise
    return 0


def _limit(limits: IngestLimits) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_bytes, limits.file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _ingest(folder: Path, column_types: dict[str, Any], limits: IngestLimits) -> None:
    sys.meta_path.insert(0, _WithoutPandas())
    # Imported under the limits, and only here: Arrow is most of this process's start.
    from service.column_store import ColumnStore
    from service.csv_reader import CsvTable

    upload = folder / UPLOAD
    if upload.stat().st_size == 0:
        hint = "Upload a CSV file: a line of column names, then one line a row."
        raise IngestError("invalid_dataset", "the file is empty", count=0, hint=hint)
    store = ColumnStore(folder)
    CsvTable(upload, column_types, limits).read(store)
    store.finish(upload.stat().st_size)


def _refuse(error: IngestError) -> int:
    known = ("code", "message", "line", "column", "value", "count", "hint")
    sys.stdout.write(json.dumps({name: getattr(error, name) for name in known}))
    return REFUSED


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # not through Arrow's destructors: on a busy machine they abort while its threads are at work
