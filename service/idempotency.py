"""Creates that may be sent twice: under one `Idempotency-Key`, the first answer is the only one."""

import secrets
from collections.abc import Callable
from typing import Any

import orjson

from service.answers import Answer
from service.errors import ApiError
from service.store import Store

Json = dict[str, Any]
LONGEST_KEY = 200
_kept: set[tuple[str, str]] = set()  # refused, and not given back: a full store takes nothing, that neither


def new_id(prefix: str) -> str:
    """`job_` and 16 random characters, say."""
    return f"{prefix}_{secrets.token_hex(8)}"


def create_once(
    store: Store,
    key: str | None,
    route: str,
    body_sha256: str,
    resource_id: str,
    create: Callable[[str], tuple[int, Json]],
    find: Callable[[str], Json | None],
) -> Answer:
    """Answer with what `create(resource_id)` gives, or with what was answered under `key` before.

    `find(resource_id)`: what a request under the same key that was cut off by a crash had made, if anything: it is not
    made twice. A refusal gives the key back. ApiError 409 idempotency_in_progress while the first request is at work.
    """
    if key is None:
        status, answer = create(resource_id)
        return Answer(answer, status)
    if not 1 <= len(key) <= LONGEST_KEY or not key.isprintable():
        raise ApiError(400, "invalid_request", f"a key has 1 to {LONGEST_KEY} printable characters", "Idempotency-Key")
    if (key, route) in _kept:
        _give_back(store, key, route)
    known = store.begin_idempotent(key, route, body_sha256, resource_id)
    if known is not None:
        if known.status is not None and known.answer is not None:
            return Answer(orjson.loads(known.answer), known.status)
        made = find(known.resource_id)
        if made is None:
            message = "the first request under this key is still at work"
            raise ApiError(409, "idempotency_in_progress", message, "Idempotency-Key", headers={"Retry-After": "1"})
        status, answer = 201, made
    else:
        try:
            status, answer = create(resource_id)
        except BaseException:
            _kept.add((key, route))
            _give_back(store, key, route)
            raise
    store.finish_idempotent(key, route, status, orjson.dumps(answer).decode())
    return Answer(answer, status)


def _give_back(store: Store, key: str, route: str) -> None:
    """As soon as the store takes it: now, or when the key comes again."""
    store.release_idempotent(key, route)
    _kept.discard((key, route))
