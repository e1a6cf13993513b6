"""Idempotency keys: one request makes the resource, whoever else comes with the same key."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock
from typing import Any

import orjson
import pytest

from service.errors import ApiError, KeyReused, StoreFull
from service.idempotency import create_once
from service.store import Store

THREADS = 20


class Maker:
    """Makes resources of one kind, and remembers which."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.lock = Lock()

    def create(self, resource_id: str) -> tuple[int, dict[str, Any]]:
        with self.lock:
            self.made.append(resource_id)
        return 201, {"id": resource_id}

    def find(self, resource_id: str) -> dict[str, Any] | None:
        with self.lock:
            return {"id": resource_id} if resource_id in self.made else None


def once(store: Store, key: str | None, maker: Maker, resource_id: str, body: str = "body") -> str:
    answer = create_once(store, key, "/v1/jobs", body, resource_id, maker.create, maker.find)
    assert answer.status_code == 201
    found: str = orjson.loads(answer.body)["id"]
    return found


def patiently(call: Callable[[], str]) -> str:
    """As a client does: 409 idempotency_in_progress is a reason to come again."""
    while True:
        try:
            return call()
        except ApiError as error:
            if (error.code, error.headers.get("Retry-After")) != ("idempotency_in_progress", "1"):
                raise


def test_twenty_threads_with_one_key_get_one_resource(store: Store) -> None:
    maker, together = Maker(), Barrier(THREADS)

    def submit(number: int) -> str:
        together.wait()
        return patiently(lambda: once(store, "key", maker, f"job_{number}"))

    with ThreadPoolExecutor(THREADS) as pool:
        answers = set(pool.map(submit, range(THREADS)))
    assert answers == set(maker.made)
    assert len(maker.made) == 1


def test_no_key_another_key_and_another_route_are_another_resource(store: Store) -> None:
    maker = Maker()
    assert once(store, None, maker, "job_1") != once(store, None, maker, "job_2")
    assert once(store, "a", maker, "job_3") != once(store, "b", maker, "job_4")
    answer = create_once(store, "a", "/v1/datasets", "body", "ds_5", maker.create, maker.find)
    assert orjson.loads(answer.body) == {"id": "ds_5"}


def test_another_body_under_the_same_key_is_refused(store: Store) -> None:
    maker = Maker()
    once(store, "key", maker, "job_1")
    with pytest.raises(KeyReused):
        once(store, "key", maker, "job_2", body="another")
    assert maker.made == ["job_1"]


def test_a_refusal_gives_the_key_back(store: Store) -> None:
    maker = Maker()

    def refuse(_: str) -> tuple[int, dict[str, Any]]:
        raise ApiError(422, "invalid_spec", "no")

    with pytest.raises(ApiError, match="invalid_spec"):
        create_once(store, "key", "/v1/jobs", "body", "job_1", refuse, maker.find)
    assert once(store, "key", maker, "job_2", body="mended") == "job_2"


def test_a_key_that_a_full_store_has_kept_is_given_back_when_it_comes_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = Maker()

    def full(*_: str) -> Any:
        raise StoreFull("fallline.db")

    with monkeypatch.context() as patched:
        patched.setattr(store, "release_idempotent", full)
        with pytest.raises(StoreFull):
            create_once(store, "key", "/v1/jobs", "body", "job_1", full, maker.find)
    assert once(store, "key", maker, "job_2") == "job_2"


def test_what_a_crash_left_made_is_found_and_not_made_again(store: Store) -> None:
    maker = Maker()
    store.begin_idempotent("key", "/v1/jobs", "body", "job_1")
    with pytest.raises(ApiError) as refusal:  # not made yet: the first may be at work
        once(store, "key", maker, "job_2")
    assert refusal.value.code == "idempotency_in_progress"
    maker.create("job_1")  # made, and then the process died before it answered
    assert once(store, "key", maker, "job_3") == "job_1"
    assert maker.made == ["job_1"]


@pytest.mark.parametrize("key", ["", "a" * 201, "a\nb"])
def test_a_key_that_cannot_be_one_is_refused(store: Store, key: str) -> None:
    with pytest.raises(ApiError, match="printable"):
        once(store, key, Maker(), "job_1")
