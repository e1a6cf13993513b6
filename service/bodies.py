"""Request bodies as data: JSON or YAML, refused in the contract's words when they are neither."""

import hashlib
import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from service.errors import ApiError, SpecError
from service.schemas import first_problem

YAML_TYPES = frozenset({"application/yaml", "application/x-yaml", "text/yaml"})
LONGEST_YAML = 1 << 20
T = TypeVar("T", bound=BaseModel)


async def read_object(request: Request) -> tuple[dict[str, Any], str]:
    """The body's object, and the SHA-256 of the body. NaN and infinities pass here: the field's own check names it."""
    body = await request.body()
    kind = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    data = _yaml(body) if kind in YAML_TYPES else _json(body)
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
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from error


def _yaml(body: bytes) -> Any:
    """YAML 1.2: 1e-3 is a number, `no` is a text. No tags beyond it, no anchors (they can blow a small text up)."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.events import AliasEvent

    if len(body) > LONGEST_YAML:
        raise ApiError(413, "too_large", f"a YAML spec has at most {LONGEST_YAML:,} bytes")
    try:
        text = body.decode()
        if any(isinstance(event, AliasEvent) for event in YAML(typ="safe", pure=True).parse(text)):
            raise ApiError(400, "invalid_yaml", "a YAML spec may not use aliases (*name)")
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ApiError(400, "invalid_yaml", f"the body is not YAML 1.2: {error}") from error
