"""An uploaded file -> a checked dataset on disk, by a subprocess with limited memory, time and file size.

The file comes from a stranger: it is parsed in a process that holds no secret and whose end, however bad, is an error
message here. This module is what the API imports: standard library only.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

UPLOAD, MANIFEST, COLUMNS = "upload", "dataset.json", "columns"
REFUSED = 3  # exit status of the subprocess that has written an IngestError to its standard output

# All that the subprocess gets to see of our environment.
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TMPDIR", "HOME", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")
_GIB, _THREADS = 2**30, 8

# What Python, C++, the loader and Arrow print, in lower case, where there is no memory, or none for a thread's stack.
_MEMORY_SIGNS = (
    "memoryerror",
    "bad_alloc",
    "cannot allocate",
    "memory allocation",
    "out of memory",
    "failed to map",
    "start new thread",
    "resource temporarily unavailable",
)


class IngestError(Exception):
    """The file cannot become a dataset. `message` says what is wrong and where, `hint` what would mend it.

    `code`: invalid_dataset; too_large, a limit was reached; disk_full; internal, a fault of ours. `line` counts the
    file's lines, the header is 1; `column` is a name, or a number from 1 where there is none; `count` counts the
    places with the same fault.
    """

    def __init__(
        self,
        code: str,
        message: str,
        line: int | None = None,
        column: str | int | None = None,
        value: str | None = None,
        count: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(code, message, line, column, value, count, hint)
        self.code, self.message, self.line, self.column = code, message, line, column
        self.value, self.count, self.hint = value, count, hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}. {self.hint}"

    def details(self) -> dict[str, Any]:
        """What is known of the place, for the `error` of an answer."""
        known = {"line": self.line, "column": self.column, "value": self.value, "count": self.count, "hint": self.hint}
        return {name: value for name, value in known.items() if value is not None}


@dataclass(frozen=True)
class IngestLimits:
    """What one ingestion may use. `memory_bytes` is address space, of which Python and Arrow take 0.3 GiB."""

    memory_bytes: int = 4 * _GIB
    cpu_seconds: int = 300
    wall_seconds: float = 600.0
    file_bytes: int = 16 * _GIB  # of any one file that it writes
    columns: int = 10_000


def ingest(
    folder: Path, file_format: str, column_types: Mapping[str, str] | None, limits: IngestLimits | None = None
) -> dict[str, Any]:
    """Read FOLDER/upload, write FOLDER/columns and FOLDER/dataset.json; returns the latter's content.

    `column_types` corrects the types of columns: integer, number, boolean or text by name. A folder that has its
    dataset.json is done already. Raises IngestError, and then leaves nothing beside the upload. Blocks: call it in a
    thread.
    """
    if file_format != "csv":
        raise IngestError(
            "invalid_dataset", f"the format {file_format!r} is not supported yet", hint="Upload the table as CSV."
        )
    limits = limits or IngestLimits()
    manifest = folder / MANIFEST
    if not manifest.exists():
        request = {"column_types": dict(column_types or {}), "limits": asdict(limits)}
        try:
            _run(folder, request, limits)
        except BaseException:
            shutil.rmtree(folder / COLUMNS, ignore_errors=True)
            manifest.unlink(missing_ok=True)
            manifest.with_name(MANIFEST + ".part").unlink(missing_ok=True)
            raise
    content: dict[str, Any] = json.loads(manifest.read_bytes())
    return content


def _run(folder: Path, request: dict[str, Any], limits: IngestLimits) -> None:
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {
        "PYTHONUTF8": "1",
        # Address space is limited: no allocator or BLAS that reserves much more than it uses.
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "MALLOC_ARENA_MAX": "2",
        # Arrow reserves a whole block for each column and then cuts it down to what it holds. On the heap the rests lie
        # scattered and are not used again: 15 GiB of addresses for MNIST's 785 columns. Mapped one by one they are 0.6.
        "MALLOC_MMAP_THRESHOLD_": str(2**17),
        "OPENBLAS_NUM_THREADS": "1",
        # Of Arrow's own threads, whose stacks count as well.
        "OMP_NUM_THREADS": str(min(os.cpu_count() or 1, _THREADS)),
    }
    command = [sys.executable, "-m", "service.ingest_process", str(folder.absolute())]
    root = Path(__file__).resolve().parent.parent
    try:
        ended = subprocess.run(
            command,
            input=json.dumps(request).encode(),
            capture_output=True,
            env=environment,
            cwd=root,
            timeout=limits.wall_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _too_large(f"reading the file took longer than {limits.wall_seconds:g} s") from None
    if ended.returncode == REFUSED:
        raise IngestError(**json.loads(ended.stdout))
    if ended.returncode != 0:
        raise _died(ended.returncode, ended.stderr.decode(errors="replace"), limits)


def _died(status: int, errors: str, limits: IngestLimits) -> IngestError:
    """What the subprocess's end means, where it could not say so itself."""
    if status == -signal.SIGXCPU:
        return _too_large(f"reading the file took more than {limits.cpu_seconds} s of processor time")
    if status == -signal.SIGKILL or any(sign in errors.lower() for sign in _MEMORY_SIGNS):
        return out_of_memory(limits)
    tail = errors.strip().splitlines()[-1:] or ["no message"]
    return IngestError("internal", f"reading the file failed unexpectedly (exit status {status}: {tail[0]})")


def out_of_memory(limits: IngestLimits) -> IngestError:
    """The memory limit was reached."""
    return _too_large(f"reading the file needs more than the {limits.memory_bytes / _GIB:.3g} GiB of memory it may use")


def _too_large(message: str) -> IngestError:
    return IngestError("too_large", message, hint="Upload fewer rows or columns.")
