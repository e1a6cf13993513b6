"""/healthz and /readyz: alive; and whether every part is up."""

import time
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import RedirectResponse, Response

from service.answers import Answer
from service.context import Context, context
from service.errors import StoreUnavailable
from service.parts import read_parts

router = APIRouter(tags=["health"])
Parts = Annotated[Context, Depends(context)]


@router.get("/healthz")
async def alive() -> Response:
    """The API process answers. Asynchronous: whatever holds all threads up."""
    return Answer({"status": "ok"})


@router.get("/readyz")
def ready(parts: Parts) -> Response:
    """200 when every part is up; else 503, naming what is not."""
    found = read_parts(parts.settings.home, time.time())
    states = {"api": {"state": "up"}, "store": _store(parts)} | {name: asdict(part) for name, part in found.items()}
    missing = [name for name, part in states.items() if part["state"] != "up"]
    if not missing:
        return Answer({"status": "ready", "parts": states})
    accepted = "" if "store" in missing else " Jobs are accepted meanwhile, deployed models answer."
    message = f"not up: {', '.join(missing)}.{accepted}"
    error = {"code": "not_ready", "message": message, "param": None, "missing": missing}
    return Answer({"error": error, "parts": states}, 503)


def _store(parts: Context) -> dict[str, str]:
    try:
        parts.store.ping()
    except StoreUnavailable as error:
        return {"state": "down", "detail": error.reason}
    return {"state": "up"}


@router.get("/", include_in_schema=False)
def root() -> Response:
    """The web page is not there yet; the API's own page stands in."""
    return RedirectResponse("/docs")
