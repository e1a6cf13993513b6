"""/healthz and /readyz: alive; and whether every part is up."""

import time
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import RedirectResponse, Response

from service.answers import Answer
from service.context import Context, context
from service.parts import read_parts

router = APIRouter(tags=["health"])
Parts = Annotated[Context, Depends(context)]


@router.get("/healthz")
def alive() -> Response:
    """The API process answers."""
    return Answer({"status": "ok"})


@router.get("/readyz")
def ready(parts: Parts) -> Response:
    """200 when every part is up; else 503, naming what is not."""
    parts.store.ping()
    found = read_parts(parts.settings.home, time.time())
    states = {"api": {"state": "up"}, "store": {"state": "up"}} | {name: asdict(part) for name, part in found.items()}
    missing = [name for name, part in found.items() if part.state != "up"]
    if not missing:
        return Answer({"status": "ready", "parts": states})
    message = f"not up: {', '.join(missing)}. Jobs are accepted meanwhile, deployed models answer."
    error = {"code": "not_ready", "message": message, "param": None, "missing": missing}
    return Answer({"error": error, "parts": states}, 503)


@router.get("/", include_in_schema=False)
def root() -> Response:
    """The web page is not there yet; the API's own page stands in."""
    return RedirectResponse("/docs")
