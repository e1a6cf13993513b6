"""Request bodies as data: JSON or YAML, refused in the contract's words when they are neither."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from service.errors import ApiError, SpecError
from service.schemas import first_problem

YAML_TYPES = frozenset({"application/yaml", "application/x-yaml", "text/yaml"})
LONGEST_YAML, DEEPEST_YAML = 1 << 16, 50  # the parser takes 30 microseconds a byte
T = TypeVar("T", bound=BaseModel)


async def read_object(request: Request) -> tuple[dict[str, Any], str]:
    """The body's object, and the SHA-256 of the body. NaN and infinities pass here: the field's own check names it."""
    body = await request.body()
    kind = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    data = await run_in_threadpool(_yaml, body) if kind in YAML_TYPES else _json(body)
    if not isinstance(data, dict):
        raise ApiError(422, "invalid_request", f"expected an object of fields, got {type(data).__name__}")
    return data, hashlib.sha256(body).hexdigest()


def validated(kind: type[T], data: Any) -> T:
    """`data` as a `kind`; raises SpecError about the first field that is wrong."""
    try:
        return kind.model_validate(data)
    except ValidationError as problems:
        param, code, message = first_problem(problems)
        raise SpecError(param, message, code) from problems


def _json(body: bytes) -> Any:
    try:
        data = json.loads(body)
        if b"\\u" in body:
            _refuse_half_letters(data)
        return data
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from error


def _yaml(body: bytes) -> Any:
    """YAML 1.2: 1e-3 is a number, `no` is a text. No tags beyond it, no anchors (they can blow a small text up)."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if len(body) > LONGEST_YAML:
        raise ApiError(413, "too_large", f"a YAML spec has at most {LONGEST_YAML:,} bytes; JSON may be longer")
    try:
        text = body.decode()
        _check_yaml(YAML(typ="safe", pure=True).parse(text))
        data = YAML(typ="safe", pure=True).load(text)
        _refuse_half_letters(data)
        return data
    except (YAMLError, RecursionError, ValueError) as error:
        raise ApiError(400, "invalid_yaml", f"the body is not YAML 1.2: {error}") from error


def _check_yaml(events: Iterable[Any]) -> None:
    """Before anything is built: the parser's effort grows with the square of the depth, the data's size by aliases."""
    from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, DocumentStartEvent

    depth = 0
    for event in events:
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > DEEPEST_YAML:
            raise ValueError(f"nested deeper than {DEEPEST_YAML} levels")
        if isinstance(event, AliasEvent):
            raise ValueError("aliases (*name) are not allowed in a spec")
        if isinstance(event, DocumentStartEvent) and event.version not in (None, (1, 2)):
            raise ValueError("another version is declared")


def _refuse_half_letters(data: Any) -> None:
    """An escaped half of a surrogate pair is no letter: it could be stored, but never be answered."""
    json.dumps(data, ensure_ascii=False, default=str).encode()
