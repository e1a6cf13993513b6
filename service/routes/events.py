"""/v1/jobs/{id}/events: a job's events as a list, or as a live stream that can be taken up again anywhere."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import orjson
from fastapi import APIRouter, Depends, Header, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service import answers
from service.answers import Answer
from service.context import Context, context
from service.errors import ApiError, NotFound, StoreUnavailable
from service.job_state import FINAL
from service.records import EventRecord
from service.routes.parameters import LARGEST

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
Parts = Annotated[Context, Depends(context)]
HEARTBEAT_S = 15.0
_AT_ONCE = 500


@router.get("/{job_id}/events")
async def events(
    request: Request,
    parts: Parts,
    job_id: str,
    after: Annotated[int, Query(ge=0, le=LARGEST)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Events, oldest first, behind number `after`. With `Accept: text/event-stream`: live, behind `Last-Event-ID`,
    until the job ends."""
    await run_in_threadpool(parts.store.get_job, job_id)
    if "text/event-stream" not in request.headers.get("accept", ""):
        found = await run_in_threadpool(parts.store.events_after, job_id, after, limit + 1)
        data = [answers.event(event) for event in found[:limit]]
        return Answer(answers.listed(data, len(found) > limit))
    if last_event_id is not None:
        if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 16):
            message = f"expected the number of an event; got {last_event_id!r}"
            raise ApiError(422, "invalid_request", message, "Last-Event-ID")
        after = int(last_event_id)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(parts, job_id, after), media_type="text/event-stream", headers=headers)


async def _stream(parts: Context, job_id: str, after: int) -> AsyncIterator[bytes]:
    """Every event behind number `after`, as it comes. Ends with the job, or with the API process."""
    yield b"retry: 1000\n\n"
    while not parts.watcher.stopping:
        woken = parts.watcher.next_event()  # taken before the look: what comes in between wakes at once
        try:
            ended, found = await _shared_look(parts, woken, job_id, after)
        except NotFound:
            return  # the job was deleted meanwhile
        except StoreUnavailable:
            ended, found = False, []  # it has waited for some time already; the next look may be luckier
        for event in found:
            after = event.id
            yield _encoded(event)
        if ended and len(found) < _AT_ONCE:
            return
        if not found and not await parts.watcher.wait(woken, HEARTBEAT_S):
            yield b": still here\n\n"


_Look = asyncio.Task[tuple[bool, list[EventRecord]]]
_looks: dict[tuple[asyncio.Event, str, int], _Look] = {}


async def _shared_look(parts: Context, woken: asyncio.Event, job_id: str, after: int) -> tuple[bool, list[EventRecord]]:
    """One look for all streams that were woken by the same event, and wait for the same: 500 cost what one does."""
    key = (woken, job_id, after)
    if (look := _looks.get(key)) is None:
        look = _looks[key] = asyncio.create_task(run_in_threadpool(_look, parts, job_id, after))
        look.add_done_callback(lambda _: _looks.pop(key))
    return await asyncio.shield(look)  # a reader that leaves ends its own stream alone


def _look(parts: Context, job_id: str, after: int) -> tuple[bool, list[EventRecord]]:
    ended = parts.store.get_job(job_id).status in FINAL  # first: no event comes after the end
    return ended, parts.store.events_after(job_id, after, _AT_ONCE)


def _encoded(event: EventRecord) -> bytes:
    return f"id: {event.id}\nevent: {event.type}\ndata: ".encode() + orjson.dumps(answers.event(event)) + b"\n\n"
