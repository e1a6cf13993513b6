"""Every refusal in the contract's one shape, whoever raised it."""

import logging
import uuid
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from core.errors import DataError, SpecificationError
from service.answers import Answer
from service.errors import (
    ApiError,
    Conflict,
    InvalidTransition,
    KeyReused,
    NotFound,
    QueueFull,
    StoreFull,
    StoreUnavailable,
)
from service.schemas import path_of

log = logging.getLogger(__name__)
QUEUE_RETRY_SECONDS = 10
STORE_RETRY_SECONDS = 5
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}


def error_answer(
    status: int,
    code: str,
    message: str,
    param: str | None = None,
    details: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """`{"error": {"code", "message", "param", ...}}`."""
    body = {"code": code, "message": message, "param": param, **(details or {})}
    return Answer({"error": body}, status, headers)


def install(app: FastAPI) -> None:
    """Register a handler for everything that routes raise."""

    @app.exception_handler(ApiError)
    def _api(_: Request, error: ApiError) -> Answer:
        return error_answer(error.status, error.code, error.message, error.param, error.details, error.headers)

    @app.exception_handler(NotFound)
    def _not_found(_: Request, error: NotFound) -> Answer:
        return error_answer(404, "not_found", str(error))

    @app.exception_handler(InvalidTransition)
    def _transition(_: Request, error: InvalidTransition) -> Answer:
        return error_answer(409, "invalid_transition", str(error), details={"status": error.status})

    @app.exception_handler(QueueFull)
    def _full(_: Request, error: QueueFull) -> Answer:
        headers = {"Retry-After": str(QUEUE_RETRY_SECONDS)}
        return error_answer(429, "queue_full", str(error), details={"queued": error.queued}, headers=headers)

    @app.exception_handler(StoreUnavailable)
    def _unavailable(request: Request, error: StoreUnavailable) -> Answer:
        log.warning("%s %s: %s", request.method, request.url.path, error)
        headers = {"Retry-After": str(STORE_RETRY_SECONDS)}
        return error_answer(503, "store_unavailable", f"{error}; try again later", headers=headers)

    @app.exception_handler(StoreFull)
    def _disk(_: Request, error: StoreFull) -> Answer:
        return error_answer(507, "disk_full", str(error))

    @app.exception_handler(Conflict)
    def _conflict(_: Request, error: Conflict) -> Answer:
        return error_answer(409, error.code, error.message)

    @app.exception_handler(KeyReused)
    def _reused(_: Request, error: KeyReused) -> Answer:
        return error_answer(409, "idempotency_key_reused", str(error), "Idempotency-Key")

    @app.exception_handler(DataError)
    def _data(_: Request, error: DataError) -> Answer:
        place = f"instances[{error.row}]" + ("" if error.column is None else f".{error.column}")
        message = f"{place}: got {error.value!r:.200}; expected {error.expected}"
        return error_answer(422, "invalid_instance", message, place, {"row": error.row, "column": error.column})

    @app.exception_handler(SpecificationError)
    def _specification(_: Request, error: SpecificationError) -> Answer:
        return error_answer(422, "invalid_request", str(error), error.field)

    @app.exception_handler(RequestValidationError)
    def _validation(_: Request, error: RequestValidationError) -> Answer:
        problem = error.errors()[0]
        param = path_of(tuple(problem["loc"][1:]))  # the first part says query, path or body
        return error_answer(422, "invalid_request", f"{param}: {problem['msg']}", param)

    @app.exception_handler(HTTPException)
    def _http(_: Request, error: HTTPException) -> Answer:
        code = _CODES.get(error.status_code, f"http_{error.status_code}")
        return error_answer(error.status_code, code, str(error.detail), headers=dict(error.headers or {}))

    @app.exception_handler(ClientDisconnect)
    def _gone(_: Request, error: ClientDisconnect) -> Answer:
        return error_answer(400, "client_disconnected", "the body ended too early")  # nobody is left to read it

    @app.exception_handler(Exception)
    def _unexpected(request: Request, error: Exception) -> Answer:
        number = uuid.uuid4().hex[:12]
        log.error("error %s in %s %s", number, request.method, request.url.path, exc_info=error)
        return error_answer(
            500, "internal", f"an unexpected error; the logs tell more under {number}", None, {"id": number}
        )
