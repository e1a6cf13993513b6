"""Creates that may be sent twice: under one `Idempotency-Key`, the first answer is the only one."""

import secrets
from collections.abc import Callable
from typing import Any

import orjson

from service.answers import Answer
from service.errors import ApiError, StoreUnavailable
from service.store import Store

Json = dict[str, Any]
LONGEST_KEY = 200
# Keys (and routes) of requests that ended here without an answer: the store was away, and could not be told so either.
_cut_off: set[tuple[str, str]] = set()


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
    After StoreUnavailable the key is free for another try, unless the resource was made all the same.
    """
    if key is None:
        status, answer = create(resource_id)
        return Answer(answer, status)
    if not 1 <= len(key) <= LONGEST_KEY or not key.isprintable():
        raise ApiError(400, "invalid_request", f"a key has 1 to {LONGEST_KEY} printable characters", "Idempotency-Key")
    known = store.begin_idempotent(key, route, body_sha256, resource_id)
    if known is not None:
        if known.status is not None and known.answer is not None:
            return Answer(orjson.loads(known.answer), known.status)
        made = find(known.resource_id)
        if made is None and (key, route) in _cut_off:
            store.release_idempotent(key, route)
            _cut_off.discard((key, route))
            return create_once(store, key, route, body_sha256, resource_id, create, find)
        if made is None:
            message = "the first request under this key is still at work"
            raise ApiError(409, "idempotency_in_progress", message, "Idempotency-Key", headers={"Retry-After": "1"})
        status, answer = 201, made
    else:
        try:
            status, answer = create(resource_id)
        except StoreUnavailable:
            _cut_off.add((key, route))
            raise
        except BaseException:
            _give_back(store, key, route)
            raise
    store.finish_idempotent(key, route, status, orjson.dumps(answer).decode())
    return Answer(answer, status)


def _give_back(store: Store, key: str, route: str) -> None:
    try:
        store.release_idempotent(key, route)
    except StoreUnavailable:
        _cut_off.add((key, route))  # the next request under it will
