"""Uploads over HTTP: a dataset, or a refusal that leaves nothing behind, whatever goes wrong and when."""

import json
import logging
import resource
import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.context import CHECKS_AT_ONCE
from service.disk import Disk
from service.ingest import ingest
from service.settings import Settings
from service.store import Store

from .conftest import CSV, Api, served


@pytest.fixture
def nothing_left(api: Api) -> Iterator[None]:
    """What the test does leaves no folder and no row of the store behind."""
    before = api.folders(), len(api.store.list_datasets(100).data)
    yield
    assert (api.folders(), len(api.store.list_datasets(100).data)) == before


def error(answer: httpx.Response, status: int, code: str) -> dict[str, object]:
    found: dict[str, object] = answer.json()["error"]
    assert (answer.status_code, found["code"]) == (status, code), answer.text
    return found


def test_a_table_becomes_a_dataset(api: Api) -> None:
    answer = api.upload(name="flats")
    made = answer.json()
    assert (answer.status_code, made["object"], made["status"], made["rows"]) == (201, "dataset", "ready", 90)
    assert {column["name"]: column["type"] for column in made["columns"]} == {
        "x": "integer",
        "y": "integer",
        "kind": "text",
    }
    assert not {"file", "vocabulary_file"} & made["columns"][2].keys()
    assert api.client.get("/v1/datasets/flats").json() == made
    assert api.client.get(f"/v1/datasets/{made['id']}").json() == made
    assert "upload" not in {path.name for path in (api.settings.datasets / made["id"]).iterdir()}
    again = api.upload(name="flats").json()
    assert (again["version"], again["sha256"]) == (2, made["sha256"])
    assert api.client.get("/v1/datasets/flats").json()["id"] == again["id"]


def test_the_files_name_is_the_name_unless_another_is_given(api: Api) -> None:
    answer = api.client.post("/v1/datasets", files={"file": ("C:/tables/flats 2.csv", CSV, "text/csv")})
    assert answer.json()["name"] == "flats 2"


def test_column_types_can_be_corrected(api: Api) -> None:
    made = api.upload(columns=json.dumps({"x": "text", "y": "number"})).json()
    assert [column["type"] for column in made["columns"]] == ["text", "number", "text"]


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("columns", "code", "param"),
    [
        ('{"kind": "number"}', "invalid_dataset", "file"),
        ('{"kind": "date"}', "invalid_request", "columns.kind"),
        ('{"kind": ["text"]}', "invalid_request", "columns.kind"),
        ('["kind"]', "invalid_request", "columns"),
        ("kind", "invalid_request", "columns"),
        ("[" * 10_000, "invalid_request", "columns"),
        ('{"\\ud800": "text"}', "invalid_request", "columns"),
        ('{"\\ud800": "date"}', "invalid_request", "columns"),
    ],
)
def test_column_types_that_do_not_fit_are_refused(api: Api, columns: str, code: str, param: str) -> None:
    assert error(api.upload(columns=columns), 422, code)["param"] == param


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("content", [b"", b"x,y\n1,2,3\n"])
def test_a_broken_file_leaves_nothing(api: Api, content: bytes) -> None:
    assert error(api.upload(content), 422, "invalid_dataset")["param"] == "file"


@pytest.mark.usefixtures("nothing_left")
def test_what_is_no_upload_is_refused(api: Api) -> None:
    post = api.client.post
    file = {"file": ("x.csv", CSV, "text/csv")}
    assert error(post("/v1/datasets", json={"file": "x"}), 422, "invalid_request")["param"] == "file"
    assert error(post("/v1/datasets", data={"file": "x"}), 422, "invalid_request")["param"] == "file"
    assert error(post("/v1/datasets", files=file, data={"nam": "x"}), 422, "invalid_request")["param"] == "nam"
    assert error(api.upload(name="a/b"), 422, "invalid_request")["param"] == "name"
    two = [("file", ("x.csv", CSV, "text/csv")), ("file", ("y.csv", CSV, "text/csv"))]
    assert post("/v1/datasets", files=two).status_code == 400


@pytest.mark.usefixtures("nothing_left")
def test_too_large_a_file_is_refused_with_and_without_its_length(api: Api) -> None:
    limit = api.settings.max_upload_bytes
    assert error(api.upload(b"x" * (limit + 1)), 413, "too_large")["limit"] == limit
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    pieces = (piece for piece in [head] + [b"x" * 1_000_000] * 6)
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    error(api.client.post("/v1/datasets", content=pieces, headers=kind), 413, "too_large")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As on a disk that is full: no file of this process grows beyond `size`."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("size", [900_000, 2_500_000])
def test_a_full_disk_leaves_nothing(api: Api, size: int) -> None:
    """Smaller than a megabyte, an upload is in memory until it is stored; a larger one on the disk at once."""
    with largest_file(500_000):
        answer = api.upload(b"x,y\n" + b"1,2\n" * (size // 4))
    assert error(answer, 507, "disk_full")["param"] == "file"


@pytest.mark.usefixtures("nothing_left")
def test_what_does_not_fit_above_the_reserve_is_refused_before_it_is_read(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.uploads.look", lambda folders: dict.fromkeys(folders, Disk("/d", 30_000_000, 10**9)))
    monkeypatch.setattr("service.uploads.Arriving.form", None)  # nobody asks for the body
    refusal = error(api.upload(b"x" * 2_000_000), 507, "disk_full")
    assert (refusal["free_bytes"], refusal["param"]) == (30_000_000, "file")
    assert 54_000_000 < refusal["needed_bytes"] < 54_001_000  # 5 % of the disk, and twice the file for a moment
    assert "needs 54.0 MB free at /d" in refusal["message"]


@pytest.mark.usefixtures("nothing_left")
def test_a_disk_that_becomes_full_refuses_what_it_has_begun_to_take(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    frees = iter([100_000_000, 10_000_000])
    monkeypatch.setattr("service.uploads.look", lambda folders: dict.fromkeys(folders, Disk("/d", next(frees), 10**9)))
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    pieces = (piece for piece in [head] + [b"x" * 1_100_000] * 2)  # of a length that nobody has declared
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    error(api.client.post("/v1/datasets", content=pieces, headers=kind), 507, "disk_full")


@pytest.mark.usefixtures("nothing_left")
def test_a_client_that_goes_away_half_way_leaves_nothing(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    url = api.client.base_url
    with caplog.at_level(logging.ERROR), socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(
            b"POST /v1/datasets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.csv"\r\n\r\nx,y\n1,2\n'
        )
    assert api.upload(b"").status_code == 422  # served after the other one
    assert caplog.records == []


def test_twenty_uploads_under_one_key_are_one_dataset(api: Api) -> None:
    before = api.folders()

    def upload(_: int) -> str:
        while True:
            files = {"file": ("x.csv", CSV, "text/csv")}
            answer = api.client.post("/v1/datasets", files=files, headers={"Idempotency-Key": "twenty"})
            if answer.status_code != 409:
                break
            assert answer.json()["error"]["code"] == "idempotency_in_progress"
        made: str = answer.json()["id"]
        assert (answer.status_code, answer.json()["status"]) == (201, "ready")
        return made

    with ThreadPoolExecutor(20) as pool:
        ids = set(pool.map(upload, range(20)))
    assert len(ids) == 1
    assert api.folders() - before == ids


@pytest.mark.usefixtures("nothing_left")
def test_a_broken_upload_under_one_key_is_refused_to_everyone(api: Api) -> None:
    def upload(_: int) -> int:
        files = {"file": ("x.csv", b"x,y\n1\n", "text/csv")}
        return api.client.post("/v1/datasets", files=files, headers={"Idempotency-Key": "broken"}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(upload, range(8))) <= {409, 422}
    assert upload(0) == 422


def test_a_key_belongs_to_name_content_and_types(api: Api) -> None:
    def upload(name: str, content: str, columns: str) -> int:
        files, data = {"file": ("x.csv", content, "text/csv")}, {"name": name, "columns": columns}
        answer = api.client.post("/v1/datasets", files=files, data=data, headers={"Idempotency-Key": "mine"})
        return answer.status_code

    assert upload("a", CSV, "{}") == upload("a", CSV, "{}") == 201
    assert upload("b", CSV, "{}") == upload("a", CSV + "1,2,elm\n", "{}") == upload("a", CSV, '{"x": "text"}') == 409


def test_a_dataset_in_use_is_not_deleted(api: Api) -> None:
    made = api.upload(name="used").json()["id"]
    job = api.client.post("/v1/jobs", json={"dataset": "used", "target": "kind"}).json()["id"]
    error(api.client.delete("/v1/datasets/used"), 409, "dataset_in_use")
    assert made in api.folders()
    api.client.post(f"/v1/jobs/{job}/cancel")
    assert api.client.delete("/v1/datasets/used").status_code == 204
    assert made not in api.folders()
    error(api.client.get(f"/v1/datasets/{made}"), 404, "not_found")
    error(api.client.delete("/v1/datasets/used"), 404, "not_found")


def test_a_list_is_paged(api: Api) -> None:
    ids = [api.fill.dataset(f"page {k}").id for k in range(3)][::-1]
    first = api.client.get("/v1/datasets?limit=2").json()
    assert [entry["id"] for entry in first["data"]] == ids[:2]
    assert (first["object"], first["has_more"], first["first_id"], first["last_id"]) == ("list", True, ids[0], ids[1])
    assert api.client.get(f"/v1/datasets?limit=1&after={ids[1]}").json()["first_id"] == ids[2]
    error(api.client.get("/v1/datasets?after=ds_none"), 404, "not_found")


@pytest.fixture
def settings(tmp_path: Path, empty_database: Path) -> Settings:
    """Of a service of its own, which waits for no check."""
    (tmp_path / "home").mkdir()
    shutil.copy(empty_database, tmp_path / "home" / "fallline.db")
    made = Settings.from_environment({"FALLLINE_HOME": str(tmp_path / "home")})
    return replace(made, upload_wait_seconds=0.001)


def until_checked(api: Api, dataset: str) -> httpx.Response:
    while True:
        answer = api.client.get(f"/v1/datasets/{dataset}")
        if answer.status_code != 200 or answer.json()["status"] != "processing":
            return answer


def test_a_check_that_takes_long_goes_on_behind(settings: Settings) -> None:
    with served(settings) as api:
        made = api.upload(name="slow").json()
        assert (made["status"], made["rows"]) == ("processing", None)
        refused = api.client.post("/v1/jobs", json={"dataset": "slow", "target": "kind"})
        if until_checked(api, "slow").json()["status"] == "ready" and refused.status_code == 409:
            assert (error(refused, 409, "dataset_not_ready")["param"], refused.headers["Retry-After"]) == (
                "dataset",
                "2",
            )
        assert until_checked(api, "slow").json()["rows"] == 90
        broken = api.upload(b"x,y\n1,2,3\n", name="broken").json()
        found = until_checked(api, broken["id"]).json()
        assert (found["status"], found["error"]["code"], found["error"]["line"]) == ("failed", "invalid_dataset", 2)
        refused = api.client.post("/v1/jobs", json={"dataset": "broken", "target": "kind"})
        assert error(refused, 422, "invalid_spec")["param"] == "dataset"
    assert {path.name for path in settings.datasets.iterdir()} == {made["id"]}


def test_a_start_ends_what_a_crash_cut_off(settings: Settings) -> None:
    """Somebody was told of one dataset, and will ask for it; nobody of the other, whose upload comes again."""
    settings.make_folders()
    store = Store(settings.database_url)
    for made in ("ds_told", "ds_untold"):
        store.create_dataset(made, made[3:], "csv")
        (settings.datasets / made).mkdir()
        (settings.datasets / made / "upload").write_text(CSV)
    (settings.datasets / "ds_nobodys").mkdir()
    for key, resource_id in (("untold", "ds_untold"), ("never made", "ds_never")):
        store.begin_idempotent(key, "/v1/datasets", "body", resource_id)
    job = "job_never"
    store.begin_idempotent("job", "/v1/jobs", "body", job)
    store.close()
    with served(settings) as api:
        found = api.client.get("/v1/datasets/ds_told").json()
        assert (found["status"], found["error"]["code"]) == ("failed", "interrupted")
        error(api.client.get("/v1/datasets/ds_untold"), 404, "not_found")
        for key in ("untold", "never made"):
            assert api.store.begin_idempotent(key, "/v1/datasets", "body", "ds_new") is None
        assert api.store.begin_idempotent("job", "/v1/jobs", "body", "job_new") is None
        assert api.folders() == set()


def test_what_was_made_before_the_crash_keeps_its_key(settings: Settings) -> None:
    settings.make_folders()
    with served(settings) as api:
        made = until_checked(api, api.upload().json()["id"]).json()["id"]
        api.store.begin_idempotent("key", "/v1/datasets", "body", made)
    with served(settings) as api:
        known = api.store.begin_idempotent("key", "/v1/datasets", "body", "ds_new")
        assert known is not None
        assert known.resource_id == made
        assert api.folders() == {made}


def test_two_uploads_are_checked_at_once_and_others_wait(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, checking, most = threading.Lock(), 0, 0

    def counted(*arguments: Any) -> dict[str, Any]:
        nonlocal checking, most
        with lock:
            checking += 1
            most = max(most, checking)
        try:
            return ingest(*arguments)
        finally:
            with lock:
                checking -= 1

    monkeypatch.setattr("service.uploads.ingest", counted)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda number: api.upload(name=f"t{number}"), range(6)))
    assert [answer.status_code for answer in answers] == [201] * 6
    assert most == CHECKS_AT_ONCE
