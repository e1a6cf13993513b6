"""Every route of the OpenAPI document, fed with what nobody should send: refused, and never an internal error."""

import json
import random
from typing import Any

import httpx
import pytest

from .conftest import CSV, Api

BODIES: list[bytes] = [
    b"",
    b"null",
    b"[]",
    b"5",
    b'"text"',
    b"{",
    b"{}",
    b'{"dataset": "table", "target": "\\ud800"}',
    b'{"dataset": "table", "target": "kind", "metadata": {"a": "\\ud800"}}',
    b'{"\\ud800": 1}',
    b'{"dataset": "table", "target": "kind", "metadata": {"a\\u0000": "\\u0000"}}',
    b'{"dataset": "\\u0000", "target": "kind"}',
    b'{"dataset": "table", "target": "kind", "network": {"hidden": [1e300, 4]}}',
    b'{"dataset": "table", "target": "kind", "network": {"activation": {"name": "elu", "alpha": 1'
    + b"0" * 400
    + b"}}}",
    b'{"dataset": "table", "target": "kind", "network": {"activation": {"name": {}, "alpha": null}}}',
    b'{"dataset": "table", "target": "kind", "network": {"layers": [{"units": 1e300}, null]}}',
    b'{"dataset": "table", "target": "kind", "network": {"layers": ' + b"[" * 500 + b"]" * 500 + b"}}",
    b'{"dataset": "table", "target": "kind", "network": {"graph": [{"name": "\\ud800", "inputs": ["features"]}]}}',
    b'{"dataset": "table", "target": "kind", "network": {"graph": [{"name": "a", "inputs": ["a"], "units": 1}]}}',
    b'{"dataset": "table", "target": "kind", "network": {"graph": [{"name": "a", "inputs": [{}], "operation": []}]}}',
    b'{"dataset": "table", "target": "kind", "loss": {"name": ["huber"], "delta": {}}}',
    b'{"dataset": "table", "target": "kind", "training": {"class_weight": {"\\u0000": 1, "": 1e400}}}',
    b'{"dataset": "table", "target": "kind", "training": {"seed": 1' + b"0" * 400 + b"}}",
    b'{"version": 99999999999999999999999999}',
    b'{"version": 1e400}',
    b'{"version": -1, "force": "yes"}',
    b'{"instances": [[1' + b"0" * 400 + b"]]}",
    b'{"instances": [{"x": {"y": []}}, null, 5]}',
    b'{"instances": ' + b"[" * 500 + b"]" * 500 + b"}",
    b'{"instances": [[]], "outputs": [{}]}',
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'--boundary\r\nContent-Disposition: form-data; name="file"\r\n\r\n\r\n',
    b"dataset: [\n",
    b"a: !!binary 5\n",
]
KINDS = ["application/json", "application/yaml", "multipart/form-data; boundary=boundary", "text/plain", "%%", ""]
NAMES = ["table", "nothing", "%00", "%ff", "..%2f..", "a" * 3000, "9" * 40, "%F0%9F%98%80", "-1", "'\"", "*"]
QUERIES = ["", "after=%00", "after=" + "9" * 40, "limit=" + "9" * 40, "limit=-1", "limit=x", "max_points=" + "9" * 40]
QUERIES += [
    "metadata[a%22]=1",
    "metadata[]=1",
    "metadata[a]=%ff",
    "status=%00",
    "name=%00",
    "dry_run=maybe",
    "a=%ED%A0%80",
]
HEADERS: list[dict[str, bytes]] = [
    {},
    {"Idempotency-Key": b"\xb2\xff"},
    {"Last-Event-ID": b"\xb2", "Accept": b"text/event-stream"},
    {"Last-Event-ID": b"9" * 40, "Accept": b"text/event-stream"},
    {"Accept": b"\xff"},
    {"Origin": b"http://[::1"},
    {"Content-Encoding": b"gzip"},
]


@pytest.fixture(scope="module")
def routes(api: Api) -> list[tuple[str, str]]:
    """Method and path of every route that the document has."""
    assert api.upload(CSV, "table").status_code == 201
    ended = api.fill.job()
    api.store.request_cancel(ended.id)
    NAMES.append(ended.id)
    document = api.client.get("/openapi.json").json()
    return [(method.upper(), path) for path, methods in document["paths"].items() for method in methods]


def check(answer: httpx.Response) -> None:
    about = f"{answer.request.method} {answer.request.url!s:.200} {answer.request.content[:80]!r}: {answer.text[:200]}"
    assert answer.status_code < 500 or answer.status_code in (501, 503), about
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert error["code"], about
        assert error["message"], about
        json.dumps(error)


def send(api: Api, method: str, path: str, query: str, headers: dict[str, bytes], kind: str, body: bytes) -> None:
    url = httpx.URL(str(api.client.base_url)).copy_with(raw_path=f"{path}?{query}".encode())
    fields = [(name.encode(), value) for name, value in headers.items()] + [(b"Content-Type", kind.encode())]
    check(api.client.request(method, url, headers=fields, content=body))


def filled(path: str, draw: random.Random) -> str:
    for name in ("{dataset}", "{job_id}", "{name}", "{version}"):
        path = path.replace(name, draw.choice(NAMES))
    return path


def test_every_body_on_every_route_that_takes_one(api: Api, routes: list[tuple[str, str]]) -> None:
    draw = random.Random(1)
    for method, path in routes:
        for body in BODIES if method == "POST" else BODIES[:1]:
            send(api, method, filled(path, draw), "", {}, draw.choice(KINDS[:3]), body)


@pytest.mark.parametrize("seed", range(4))
def test_anything_anywhere(api: Api, routes: list[tuple[str, str]], seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(150):
        method, path = draw.choice(routes)
        parts: list[Any] = [draw.choice(QUERIES), draw.choice(HEADERS), draw.choice(KINDS), draw.choice(BODIES)]
        send(api, method, filled(path, draw), *parts)
