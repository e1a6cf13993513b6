"""A store that somebody else has locked: told as it is, soon, and nothing is half done afterwards."""

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from service.errors import StoreUnavailable
from service.records import DatasetRecord, Json
from service.settings import Settings
from service.store import Store

from .conftest import CSV, Api, Fill, served

SPEC = {"dataset": "table", "target": "kind"}


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """A transaction of another's, which keeps writers and readers out."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Api]:
    home = tmp_path_factory.mktemp("home")
    shutil.copy(empty_database, home / "fallline.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.app.BUSY_S", 0.2)
        with served(Settings.from_environment({"FALLLINE_HOME": str(home)})) as found:
            assert found.upload(CSV).status_code == 201
            yield found


def is_told(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.headers["Retry-After"] == "5"
    error = answer.json()["error"]
    assert (error["code"], error["message"]) == (
        "store_unavailable",
        "the store cannot be used at the moment: database is locked; try again later",
    )


def test_reads_and_submissions_are_told_so_and_a_key_is_free_afterwards(api: Api) -> None:
    key = {"Idempotency-Key": "locked"}
    with locked(api.settings.home / "fallline.db"):
        for path in ("/v1/jobs", "/v1/datasets/table", "/v1/jobs/job_1/events", "/v1/models"):
            is_told(api.client.get(path))
        is_told(api.client.post("/v1/jobs", json=SPEC, headers=key))
        assert api.client.get("/healthz").status_code == 200
        ready = api.client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["error"]["missing"][0] == "store"
        assert "Jobs are accepted" not in ready.json()["error"]["message"]
    answers = [api.client.post("/v1/jobs", json=SPEC, headers=key) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert len({answer.json()["id"] for answer in answers}) == 1


@pytest.mark.parametrize("call", ["create_job", "finish_idempotent", "release_idempotent"])
def test_a_store_that_goes_away_within_a_request_leaves_its_key_to_the_next(
    api: Api, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Before the job is made, after it was made, and where a refusal cannot give the key back."""
    key, before = {"Idempotency-Key": call}, len(api.client.get("/v1/jobs").json()["data"])
    sent = SPEC | {"target": "knd"} if call == "release_idempotent" else SPEC
    with monkeypatch.context() as patch:

        def locked_out(*_: object, **__: object) -> None:
            with locked(api.settings.home / "fallline.db"):
                store.ping()

        store: Store = api.app.state.context.store
        patch.setattr(Store, call, locked_out)
        answer = api.client.post("/v1/jobs", json=sent, headers=key)
    assert answer.status_code == (422 if call == "release_idempotent" else 503), answer.text
    answers = [api.client.post("/v1/jobs", json=sent, headers=key) for _ in range(2)]
    if call == "release_idempotent":
        assert [answer.status_code for answer in answers] == [422, 422]
    else:
        assert [answer.status_code for answer in answers] == [201, 201]
        assert len(api.client.get("/v1/jobs").json()["data"]) == before + 1


def test_an_upload_that_the_store_goes_away_under_is_ready_once_it_is_back(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, database, tried = Store.finish_dataset, api.settings.home / "fallline.db", threading.Event()

    def locked_out_at_first(store: Store, dataset_id: str, found: Json) -> DatasetRecord:
        if not tried.is_set():
            tried.set()
            with locked(database):
                return finish(store, dataset_id, found)
        return finish(store, dataset_id, found)

    monkeypatch.setattr(Store, "finish_dataset", locked_out_at_first)
    answer = api.upload(CSV, name="late")
    assert tried.is_set()
    assert (answer.status_code, answer.json()["status"]) == (201, "ready"), answer.text
    assert (api.settings.datasets / answer.json()["id"] / "columns").is_dir()


def test_a_broken_upload_that_the_store_goes_away_under_leaves_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget, database, tried, gone = Store.forget_dataset, api.settings.home / "fallline.db", [0], threading.Event()

    def locked_out_at_first(store: Store, dataset_id: str) -> None:
        tried[0] += 1
        if tried[0] == 1:
            with locked(database):
                forget(store, dataset_id)
        forget(store, dataset_id)
        gone.set()

    monkeypatch.setattr(Store, "forget_dataset", locked_out_at_first)
    answer = api.upload(b"a,b\n1\n", name="broken")
    assert answer.status_code == 422, answer.text
    assert gone.wait(30)
    assert api.client.get("/v1/datasets/broken").status_code == 404


def test_a_transaction_that_waits_in_vain_has_written_nothing(store: Store, fill: Fill, tmp_path: Path) -> None:
    job = fill.job()
    hasty = Store(f"sqlite:///{tmp_path / 'fallline.db'}", busy_seconds=0.1)
    with locked(tmp_path / "fallline.db"):
        with pytest.raises(StoreUnavailable, match="locked"):
            hasty.request_cancel(job.id)
        with pytest.raises(StoreUnavailable, match="locked"):
            hasty.get_job(job.id)
    assert hasty.get_job(job.id) == job
    hasty.close()


def test_a_mistake_in_a_statement_is_no_outage(tmp_path: Path) -> None:
    empty = Store(f"sqlite:///{tmp_path / 'no tables.db'}")
    with pytest.raises(Exception, match="no such table"):
        empty.get_job("job_1")
    empty.close()
