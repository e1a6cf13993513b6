"""A checkpoint: all that a training needs to go on as if nothing had happened, and how it lies on disk.

A folder of two files: arrays.safetensors, and manifest.json, which is written last, holds everything that is not an
array, the size and SHA-256 of the other file, and its own SHA-256. Nothing is believed before its hash is right, and
nothing is allocated before the sizes are. `worker.checkpoint_store` gives the folder its name.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from core.specification import Choice, Specification
from worker.dataset import DataSpec
from worker.durable import sync_folder
from worker.errors import CheckpointDamaged, CheckpointRefused, CheckpointStorageError
from worker.plan import MetricPoint, TrainingPlan
from worker.stopping import StoppingState
from worker.warm_start import Kept

Array = NDArray[Any]

FORMAT = 1
MANIFEST, ARRAYS = "manifest.json", "arrays.safetensors"
_LARGEST_MANIFEST = 1 << 28  # bytes: some millions of points that nobody has asked for
_PIECE = 1 << 22  # bytes written and hashed at a time
_DTYPES = {"float32": "F32", "float64": "F64"}  # NumPy's name: safetensors' name
# What of a plan decides neither weights nor series: whose it is, a limit in seconds, how many workers, where and how
# often checkpoints are written, what only the model file shows.
_FREE = ("job_id", "max_seconds", "auto_workers", "checkpoint_folder", "checkpoint_every_seconds", "spec")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of one job after `step`. Its arrays are copies: nobody writes into them any more.

    `epoch` is the last one that was finished, its evaluation and its stopping decision included; `step` may lie within
    the next. `loss_sum` and `weight_sum` are what the loss log has collected since its last point. `points` are those
    that nobody had acknowledged: who goes on says them again, so that the series have no gap.

    ValueError where a field holds what it must not.
    """

    job_id: str
    attempt: int  # the lease's epoch
    plan_sha256: str  # plan_digest of its plan
    numerics: str  # the fingerprint that its bits hold for
    step: int  # from 1
    epoch: int  # from 1; 0: none is finished
    parameters: Array  # (P,), float32 or float64
    optimizer_state: Array  # (S, P), of the same dtype; S may be 0
    best: Array | None = None  # (P,), of the same dtype: the best epoch's parameters
    stopping: StoppingState = dataclasses.field(default_factory=StoppingState)
    stopped: str | None = None  # why no further step follows: "early_stopping" or "max_seconds"
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    points: tuple[MetricPoint, ...] = ()
    latest: Mapping[str, float] = dataclasses.field(default_factory=dict)  # the last value of each series
    worker_failures: int = 0
    seconds: float = 0.0  # trained so far, over all attempts

    def __post_init__(self) -> None:
        if self.step < 1:
            raise ValueError(f"step is {self.step}; expected at least 1: before it there is nothing to keep")
        if not 0 <= self.epoch <= self.step:
            raise ValueError(f"epoch is {self.epoch}; expected 0 to step ({self.step})")
        if (self.best is None) != (self.stopping.best_epoch is None):
            raise ValueError("best and stopping.best_epoch: expected both or neither")
        size, dtype = self.parameters.size, self.parameters.dtype
        if dtype.name not in _DTYPES:
            raise ValueError(f"parameters is of {dtype}; expected {' or '.join(_DTYPES)}")
        shapes = {"parameters": (size,), "optimizer_state": (len(self.optimizer_state), size), "best": (size,)}
        for name, array in self.arrays().items():
            if array.shape != shapes[name] or array.dtype != dtype or not array.flags.c_contiguous:
                raise ValueError(f"{name} is {array.dtype} {array.shape}; expected contiguous {dtype} {shapes[name]}")

    def arrays(self) -> dict[str, Array]:
        """Its arrays by name; without `best` where there is none."""
        found = {"parameters": self.parameters, "optimizer_state": self.optimizer_state}
        return found if self.best is None else found | {"best": self.best}


@dataclass(frozen=True)
class CheckpointDescription:
    """What can be told of a checkpoint without its arrays. `sha256` is the manifest's, and so covers all of it."""

    step: int
    epoch: int
    attempt: int
    bytes: int  # of all its files
    sha256: str
    seconds: float  # that writing its arrays took
    created_at: float  # Unix seconds


def plan_digest(plan: TrainingPlan) -> str:
    """64 hex digits, equal for plans whose trainings are equal, bit for bit and point for point.

    A field at its default is left out, so that a field that comes later does not disown the checkpoints there are.
    """
    matters = {name: value for name, value in _plain(plan).items() if name not in _FREE}
    return hashlib.sha256(_canonical(matters)).hexdigest()


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> CheckpointDescription:
    """Write the checkpoint into the empty `folder`; its files are on the disk when this returns. Raises OSError."""
    began = time.perf_counter()
    size, sha256 = _write_arrays(folder / ARRAYS, checkpoint.arrays())
    body = {
        "format": FORMAT,
        "created_at": time.time(),
        "seconds": time.perf_counter() - began,
        "files": {ARRAYS: {"size": size, "sha256": sha256}},
        "state": _state(checkpoint),
    }
    content = sealed(body)
    with open(folder / MANIFEST, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)
    return _description(body, len(content), json.loads(content)["sha256"])


def read_description(folder: Path) -> CheckpointDescription:
    """Checks the manifest and the files' sizes. Raises CheckpointDamaged, CheckpointRefused, CheckpointStorageError."""
    with _reading(folder):
        body, size, sha256 = _read_manifest(folder)
        return _description(body, size, sha256)


def read_checkpoint(folder: Path, plan_sha256: str) -> Checkpoint:
    """The checkpoint, every byte of it checked.

    Raises CheckpointDamaged; CheckpointRefused where it is whole but of another plan or format; CheckpointStorageError
    where the disk does not let us read.
    """
    with _reading(folder):
        body, _, _ = _read_manifest(folder)
        state = body["state"]
        if state["plan_sha256"] != plan_sha256:
            reason = f"it belongs to the plan {state['plan_sha256']}, not to {plan_sha256}"
            raise CheckpointRefused(str(folder), reason, "go on with the plan it was made by, or start a new job")
        _check_arrays(folder, body)
        arrays = safetensors.numpy.load_file(folder / ARRAYS)
        points = tuple(MetricPoint(*point) for point in state["points"])
        epoch, loss = state["stopping"]
        stopping = StoppingState(epoch, math.inf if loss is None else loss)
        return Checkpoint(**{**state, **arrays, "points": points, "stopping": stopping})


def read_parameters(folder: Path) -> Array:
    """The committed parameters (P,) alone, of whatever plan, every byte of the checkpoint checked.

    Raises what `read_checkpoint` raises.
    """
    with _reading(folder):
        _check_arrays(folder, _read_manifest(folder)[0])
        with safetensors.safe_open(folder / ARRAYS, framework="numpy") as file:
            found: Array = file.get_tensor("parameters")
        return found


def sealed(body: dict[str, Any]) -> bytes:
    """A manifest's bytes: canonical JSON that holds the SHA-256 of the rest of itself."""
    return _canonical(body | {"sha256": hashlib.sha256(_canonical(body)).hexdigest()})


def unsealed(content: bytes) -> tuple[dict[str, Any], str]:
    """The body of a manifest and its hash; ValueError where they do not fit, or there are none."""
    try:
        body = json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(body, dict):
        raise ValueError(f"{MANIFEST} holds no object")
    sha256 = body.pop("sha256", None)
    if not isinstance(sha256, str) or sealed(body) != content:
        raise ValueError(f"{MANIFEST} has another hash than it says")
    return body, sha256


def _write_arrays(path: Path, arrays: Mapping[str, Array]) -> tuple[int, str]:
    """A safetensors file: the size and SHA-256 of it. Written here and not by the library, which first writes and then
    would be read again for the hash, and which turns a full disk into an error without a number."""
    header, at = {}, 0
    for name, array in arrays.items():
        kind, shape = _DTYPES[array.dtype.name], list(array.shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = _canonical(header)
    text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of 8
    little = [array.astype(array.dtype.newbyteorder("<"), copy=False) for array in arrays.values()]
    digest = hashlib.sha256()
    parts = [memoryview(len(text).to_bytes(8, "little") + text)]
    parts += [array.reshape(-1).view(np.uint8).data for array in little]
    with open(path, "xb") as file:
        for part in parts:
            for start in range(0, len(part), _PIECE):
                piece = part[start : start + _PIECE]
                digest.update(piece)
                file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        return file.tell(), digest.hexdigest()


def _read_manifest(folder: Path) -> tuple[dict[str, Any], int, str]:
    """Body, size in bytes and hash of the manifest. ValueError where it, or the size of a file, is wrong."""
    path = folder / MANIFEST
    size = path.stat().st_size
    if size > _LARGEST_MANIFEST:
        raise ValueError(f"{MANIFEST} has {size} bytes")
    body, sha256 = unsealed(path.read_bytes())
    if body["format"] != FORMAT:
        reason = f"its format is {body['format']}; this version reads {FORMAT}"
        raise CheckpointRefused(str(folder), reason, "go on with the version that wrote it, or start a new job")
    found, wanted = (folder / ARRAYS).stat().st_size, body["files"][ARRAYS]["size"]
    if found != wanted:
        raise ValueError(f"{ARRAYS} has {found} bytes, not {wanted}")
    return body, size, sha256


def _check_arrays(folder: Path, body: dict[str, Any]) -> None:
    """ValueError where the arrays are not those that were written."""
    with open(folder / ARRAYS, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != body["files"][ARRAYS]["sha256"]:
            raise ValueError(f"{ARRAYS} has another hash than the manifest says")


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Tell damage from a disk that does not let us read."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointDamaged(str(folder), f"{Path(error.filename or ARRAYS).name} is missing") from error
    except OSError as error:
        if error.errno not in (errno.EIO, errno.ENOTDIR, errno.EISDIR):
            raise CheckpointStorageError(str(error.filename or folder), error.errno or errno.EIO) from error
        raise CheckpointDamaged(str(folder), f"unreadable ({error})") from error
    except (ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise CheckpointDamaged(str(folder), str(error)) from error


def _state(checkpoint: Checkpoint) -> dict[str, Any]:
    """All but the arrays, in JSON's types. A float comes back bit by bit; infinity, which JSON lacks, is null."""
    names = [field.name for field in dataclasses.fields(checkpoint)]
    state = {name: getattr(checkpoint, name) for name in names if name not in ("best", "parameters", "optimizer_state")}
    stopping = checkpoint.stopping
    return state | {
        "points": [dataclasses.astuple(point) for point in checkpoint.points],
        "stopping": [stopping.best_epoch, stopping.best_loss if math.isfinite(stopping.best_loss) else None],
        "latest": dict(checkpoint.latest),
    }


def _description(body: dict[str, Any], manifest_bytes: int, sha256: str) -> CheckpointDescription:
    state, size = body["state"], body["files"][ARRAYS]["size"] + manifest_bytes
    place = state["step"], state["epoch"], state["attempt"]
    return CheckpointDescription(*place, size, sha256, body["seconds"], body["created_at"])


def _plain(value: Any) -> Any:
    """What decides, in JSON's types. TypeError, from the encoder, on what this does not know."""
    if isinstance(value, DataSpec):
        return value.key()  # where the folders are decides nothing
    if isinstance(value, Kept):
        return value.sha256
    if isinstance(value, Specification | Choice):
        return value.to_json()
    if dataclasses.is_dataclass(value):
        held = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {field.name: _plain(found) for field, found in held.items() if found != field.default}
    return [_plain(element) for element in value] if isinstance(value, tuple | list) else value


def _canonical(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
