"""Who may ask: names of this machine, pages of its own, bodies within the limit, with and without a length."""

from collections.abc import Iterator

import httpx
import pytest

from .conftest import Api


def get(api: Api, **headers: str) -> tuple[int, str | None]:
    answer = api.client.get("/healthz", headers=headers)
    return answer.status_code, answer.json().get("error", {}).get("code")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "[::1]"])
def test_names_of_this_machine_are_answered(api: Api, host: str) -> None:
    assert get(api, Host=host) == (200, None)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost:x",
        "127.0.0.1.evil.example",
        "localhost.",
        "",
        "[::1",
        "evil.example#@127.0.0.1",
        "127.0.0.1/x@evil",
    ],
)
def test_other_names_are_not_whatever_they_resolve_to(api: Api, host: str) -> None:
    assert get(api, Host=host) == (403, "host_not_allowed")


@pytest.mark.parametrize("origin", ["http://localhost:8000", "http://127.0.0.1:3000", "https://[::1]:1"])
def test_pages_of_this_machine_may_ask(api: Api, origin: str) -> None:
    assert get(api, Origin=origin) == (200, None)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "http://[::1", "http://localhost.evil.example"])
def test_pages_from_elsewhere_may_not(api: Api, origin: str) -> None:
    assert get(api, Origin=origin) == (403, "origin_not_allowed")


def test_a_refused_request_changes_nothing(api: Api) -> None:
    job = api.fill.job()
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        assert api.client.post(f"/v1/jobs/{job.id}/cancel", headers=headers).status_code == 403
    assert api.store.get_job(job.id).status == "queued"


def pieces(size: int) -> Iterator[bytes]:
    for _ in range(size // 10_000):
        yield b" " * 10_000


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/models/x/predict", "/v1/models/x/deploy"])
def test_a_body_beyond_the_limit_is_refused_with_and_without_a_length(api: Api, path: str) -> None:
    limit = api.settings.max_body_bytes
    for content in (b" " * (limit + 1), pieces(limit + 20_000)):
        answer = api.client.post(path, content=content)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["limit"]) == (413, "too_large", limit)


def test_a_body_at_the_limit_is_read(api: Api) -> None:
    limit = api.settings.max_body_bytes
    for content in (b" " * limit, pieces(limit)):
        assert api.client.post("/v1/jobs", content=content).json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("path", ["/v1/datasets/", "/v1/datasets/x", "//v1/datasets"])
def test_only_the_upload_itself_may_be_as_large_as_an_upload(api: Api, path: str) -> None:
    size = api.settings.max_body_bytes + 1
    url = httpx.URL(str(api.client.base_url)).copy_with(raw_path=path.encode())
    assert api.client.post(url, content=b" " * size).status_code == 413
