"""/v1/datasets: upload, list, show, delete."""

import asyncio
import shutil
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import Response

from service import answers, uploads
from service.answers import Answer
from service.context import Context, context
from service.errors import ApiError, NotFound
from service.idempotency import create_once, new_id

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])
Parts = Annotated[Context, Depends(context)]
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "name": {"type": "string"},
                        "columns": {"type": "string", "description": "JSON: column types by name"},
                    },
                }
            }
        },
    }
}


@router.post("", status_code=201, openapi_extra=_FORM)
async def upload(request: Request, parts: Parts, idempotency_key: Annotated[str | None, Header()] = None) -> Response:
    """Upload a table as CSV. 201: it is `ready`, or still `processing`; 422: it is broken, and nothing is kept."""
    # The guard has seen that the length, where one is declared, is a number.
    await run_in_threadpool(uploads.refuse_unless_room, parts.settings, int(request.headers.get("content-length", 0)))
    try:
        async with uploads.Arriving(request, parts.settings).form(max_files=1, max_fields=10) as form:
            dataset_id, name, types, sha256 = await _stored(parts, form)
    except OSError as error:  # a large upload is on the disk before it is in its place
        raise uploads.disk_full(error) from error
    return await _create(parts, idempotency_key, f"{sha256} {name} {types}", dataset_id, name, types)


async def _stored(parts: Context, form: FormData) -> tuple[str, str, dict[str, str] | None, str]:
    """The upload in its folder: the id of the dataset to be, its name, its column types, the file's SHA-256."""
    file, name, columns = form.get("file"), form.get("name"), form.get("columns")
    for field in form:
        if field not in ("file", "name", "columns"):
            raise ApiError(422, "invalid_request", f"{field} is not a known field of an upload", field)
    if not isinstance(file, UploadFile):
        raise ApiError(422, "invalid_request", "file: expected a file, as multipart/form-data", "file")
    chosen = uploads.checked_name(str(name) if name else Path(file.filename or "dataset").stem)
    types = uploads.checked_columns(str(columns) if columns else None)
    dataset_id = new_id("ds")
    folder = parts.settings.datasets / dataset_id
    try:
        sha256 = await run_in_threadpool(uploads.save, file.file, folder / "upload", parts.settings)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return dataset_id, chosen, types, sha256


async def _create(
    parts: Context, key: str | None, body: str, dataset_id: str, name: str, types: dict[str, str] | None
) -> Answer:
    loop = asyncio.get_running_loop()

    def create(resource_id: str) -> tuple[int, answers.Json]:
        try:
            stored = parts.store.create_dataset(resource_id, name, "csv")
            checked = asyncio.run_coroutine_threadsafe(uploads.check(parts, stored, types), loop)
            return 201, answers.dataset(checked.result())
        except BaseException:
            asyncio.run_coroutine_threadsafe(uploads.forget(parts, resource_id), loop).result()
            raise

    def find(resource_id: str) -> answers.Json | None:
        """While it is `processing` the first request is at work, and will answer."""
        try:
            found = parts.store.get_dataset(resource_id)
        except NotFound:
            return None
        return None if found.status == "processing" else answers.dataset(found)

    try:
        return await run_in_threadpool(create_once, parts.store, key, "/v1/datasets", body, dataset_id, create, find)
    finally:
        if not await run_in_threadpool(_exists, parts, dataset_id):
            shutil.rmtree(parts.settings.datasets / dataset_id, ignore_errors=True)


def _exists(parts: Context, dataset_id: str) -> bool:
    try:
        return parts.store.get_dataset(dataset_id).id == dataset_id
    except NotFound:
        return False


@router.get("")
def list_datasets(parts: Parts, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> Response:
    """All datasets, newest first."""
    return Answer(answers.page(parts.store.list_datasets(limit, after), answers.dataset))


@router.get("/{dataset}")
def show_dataset(parts: Parts, dataset: str) -> Response:
    """One dataset, by id or name."""
    return Answer(answers.dataset(parts.store.get_dataset(dataset)))


@router.delete("/{dataset}", status_code=204)
def delete_dataset(parts: Parts, dataset: str) -> Response:
    """Delete a dataset that no job needs any more."""
    deleted = parts.store.delete_dataset(dataset)
    shutil.rmtree(parts.settings.datasets / deleted.id, ignore_errors=True)
    return Response(status_code=204)
