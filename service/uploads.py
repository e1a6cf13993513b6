"""An upload on its way to being a dataset: on the disk, checked by a subprocess, recorded; or gone without a trace."""

import asyncio
import hashlib
import json
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from starlette.requests import Request

from service.context import Context
from service.disk import Disk, in_mb, look, too_large
from service.errors import ApiError, StoreUnavailable
from service.fields import NAME, NAME_RULE
from service.ingest import IngestError, ingest
from service.records import DatasetRecord
from service.settings import Settings
from service.store import Store

log = logging.getLogger(__name__)
COLUMN_TYPES = ("integer", "number", "boolean", "text")
_PIECE = 1 << 20
_AGAIN_S = 1.0
T = TypeVar("T")


def checked_name(name: str) -> str:
    """`name` as a dataset's; ApiError when it cannot be one."""
    if NAME.fullmatch(name) is None:
        raise ApiError(422, "invalid_request", f"name: expected {NAME_RULE}; got {name[:80]!r}", "name")
    return name


def checked_columns(text: str | None) -> dict[str, str] | None:
    """The form field `columns`: a JSON object of types by column name."""
    if text is None or not text.strip():
        return None
    try:
        columns = json.loads(text)
        json.dumps(columns, ensure_ascii=False).encode()  # an escaped half of a surrogate pair is no letter
    except (ValueError, RecursionError) as error:
        raise ApiError(422, "invalid_request", f"columns: not JSON: {error}", "columns") from error
    expected = f'columns: expected {{"name": "type"}}, the type one of {", ".join(COLUMN_TYPES)}'
    if not isinstance(columns, dict):
        raise ApiError(422, "invalid_request", expected, "columns")
    for name, kind in columns.items():
        if kind not in COLUMN_TYPES:
            raise ApiError(422, "invalid_request", f"{expected}; got {kind!r}", f"columns.{name}")
    return columns


class Arriving(Request):
    """An upload's request, whose body is read for as long as the disks have room. ApiError disk_full."""

    def __init__(self, request: Request, settings: Settings) -> None:
        super().__init__(request.scope, request.receive)
        self._settings = settings

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Its pieces. One is in memory, or on the disk of temporary files, before the next one is looked at."""
        unlooked = 0
        async for piece in super().stream():
            unlooked += len(piece)
            if unlooked > _PIECE:
                refuse_unless_room(self._settings, unlooked)
                unlooked = 0
            yield piece


def refuse_unless_room(settings: Settings, size: int) -> None:
    """ApiError disk_full where `size` bytes of an upload do not fit and leave the reserve.

    They lie among the temporary files first, and then, beside those for a moment, in the folder of the datasets.
    """
    needs: Counter[Disk] = Counter()
    for disk in look([settings.datasets, Path(tempfile.gettempdir())]).values():
        needs[disk] += size
    if (found := too_large(needs, settings.disk_reserve_bytes)) is not None:
        disk, needed = found
        message = (
            f"the upload needs {in_mb(needed)} free at {disk.folder}, the reserve included; {in_mb(disk.free)} are"
        )
        details = {"free_bytes": disk.free, "needed_bytes": needed}
        raise ApiError(507, "disk_full", f"{message}. Free some space and upload again.", "file", details)


def save(source: BinaryIO, target: Path, settings: Settings) -> str:
    """Copy the upload to `target`; returns its SHA-256. ApiError too_large, disk_full."""
    digest, size, most = hashlib.sha256(), 0, settings.max_upload_bytes
    try:
        target.parent.mkdir(parents=True)
        with target.open("xb") as file:
            while piece := source.read(_PIECE):
                size += len(piece)
                if size > most:
                    raise ApiError(413, "too_large", f"the file is larger than {most:,} bytes", "file", {"limit": most})
                refuse_unless_room(settings, len(piece))
                digest.update(piece)
                file.write(piece)
    except OSError as error:
        raise disk_full(error) from error
    return digest.hexdigest()


def disk_full(error: OSError) -> ApiError:
    """The refusal of what cannot be written."""
    return ApiError(507, "disk_full", f"the upload cannot be stored: {error.strerror}", "file")


async def check(context: Context, stored: DatasetRecord, columns: dict[str, str] | None) -> DatasetRecord:
    """Wait for the check of a stored upload as long as the settings say; it goes on behind, if it is not done then.

    ApiError invalid_dataset, with nothing kept, when it ends with a refusal in time.
    """
    work = asyncio.create_task(_checked(context, stored, columns))
    done, _ = await asyncio.wait({work}, timeout=context.settings.upload_wait_seconds)
    if not done:
        _go_on(_finish_late(context, stored.id, work))
        return stored
    if isinstance(found := work.result(), IngestError):
        raise _refusal(found)
    return found


_at_work: set[asyncio.Task[Any]] = set()  # asyncio itself holds tasks only weakly


def _go_on(behind: Coroutine[Any, Any, Any]) -> None:
    task = asyncio.create_task(behind)
    _at_work.add(task)
    task.add_done_callback(_at_work.discard)


async def _written(write: Callable[..., T], *arguments: Any) -> T:
    """What `write` gives, as soon as the store takes it: at its end an upload has nobody to tell of an outage."""
    while True:
        try:
            return await asyncio.to_thread(write, *arguments)
        except StoreUnavailable as error:
            log.warning("%s", error)
            await asyncio.sleep(_AGAIN_S)


async def forget(context: Context, dataset_id: str) -> None:
    """Leave nothing of an upload: no folder, no row. In this order: on a full disk the row needs the folder's room.

    Where the store is away, the row goes as soon as it is back.
    """
    await asyncio.to_thread(shutil.rmtree, context.settings.datasets / dataset_id, ignore_errors=True)
    try:
        await asyncio.to_thread(context.store.forget_dataset, dataset_id)
    except StoreUnavailable:
        _go_on(_written(context.store.forget_dataset, dataset_id))


def sweep(store: Store, folder: Path) -> None:
    """After a start: end the checks that a crash cut off, and remove the folders of no dataset.

    An upload whose sender was never answered is as if it had not been sent: the sender will come again. One that may
    have been answered `processing` has failed.
    """
    unanswered = store.release_unanswered()
    for record in store.processing_datasets():
        if record.id in unanswered:
            store.forget_dataset(record.id)
        else:
            message = "the service was stopped while it checked the file; upload it again"
            store.fail_dataset(record.id, {"code": "interrupted", "message": message})
    known = store.ready_dataset_ids()
    for path in folder.iterdir():
        if path.name not in known:
            shutil.rmtree(path, ignore_errors=True)


async def _checked(
    context: Context, stored: DatasetRecord, columns: dict[str, str] | None
) -> DatasetRecord | IngestError:
    """The upload as a dataset that is ready, or why it is none."""
    folder = context.settings.datasets / stored.id
    try:
        async with context.checks:
            found = await asyncio.to_thread(ingest, folder, "csv", columns)
    except IngestError as error:
        return error
    (folder / "upload").unlink(missing_ok=True)  # the columns are what counts from now on
    return await _written(context.store.finish_dataset, stored.id, found)


async def _finish_late(context: Context, dataset_id: str, work: asyncio.Task[DatasetRecord | IngestError]) -> None:
    """Write down how a check ended that nobody waits for any more."""
    try:
        refused = await work
    except Exception:
        log.exception("checking %s", dataset_id)
        error: dict[str, Any] = {"code": "internal", "message": "an unexpected error; the log tells more"}
    else:
        if isinstance(refused, DatasetRecord):
            return
        error = {"code": refused.code, "message": str(refused), **refused.details()}
    await _written(context.store.fail_dataset, dataset_id, error)
    await asyncio.to_thread(shutil.rmtree, context.settings.datasets / dataset_id, ignore_errors=True)


def _refusal(error: IngestError) -> ApiError:
    status = {"too_large": 413, "disk_full": 507, "internal": 500}.get(error.code, 422)
    return ApiError(status, error.code, str(error), "file", error.details())
