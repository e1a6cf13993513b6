"""The Python client: errors in words, outages sat out, streams taken up again."""

import pickle
from typing import Any

import httpx
import pytest

from service.client import FallLine, ServiceError, Unreachable, find_url
from service.transport import JobTimeout, Patience, Transport, parse_events


@pytest.fixture
def client(api: Any) -> Any:
    with FallLine(str(api.client.base_url)) as opened:
        yield opened


def test_a_refusal_carries_code_message_and_param(client: FallLine) -> None:
    with pytest.raises(ServiceError) as caught:
        client.jobs.submit({"dataset": "none", "target": "x"})
    assert (caught.value.status, caught.value.code, caught.value.param) == (422, "invalid_spec", "dataset")
    assert "upload it first" in str(caught.value)


def test_lists_are_paged(client: FallLine, api: Any) -> None:
    for number in range(3):
        api.fill.dataset(f"paged{number}")
    first = client.datasets.list(limit=2)
    assert first["has_more"]
    assert client.datasets.list(limit=2, after=first["last_id"])["data"][0]["id"] not in {
        d["id"] for d in first["data"]
    }


def test_names_cannot_leave_their_path(client: FallLine) -> None:
    with pytest.raises(ServiceError) as caught:
        client.models.show("../jobs")
    assert caught.value.status == 404


def test_the_service_is_found_where_it_runs(tmp_path: Any) -> None:
    assert find_url({"FALLLINE_URL": "http://127.0.0.1:9"}) == "http://127.0.0.1:9"
    assert find_url({"FALLLINE_HOME": str(tmp_path)}) == "http://127.0.0.1:8000"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "endpoints.json").write_text('{"api": "http://127.0.0.1:7"}')
    assert find_url({"FALLLINE_HOME": str(tmp_path)}) == "http://127.0.0.1:7"


def test_nothing_there_is_unreachable_and_passes() -> None:
    with FallLine("http://127.0.0.1:1") as client, pytest.raises(Unreachable) as caught:
        client.jobs.list()
    assert caught.value.passing


def test_patience_doubles_its_pauses_and_ends() -> None:
    pauses: list[float] = []
    now = [0.0]

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    patience, error = Patience(10.0, pause, lambda: now[0]), Unreachable("url", "reason")
    while now[0] < 10:
        patience.wait(error)
    with pytest.raises(Unreachable):
        patience.wait(error)
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert 10 <= sum(pauses) < 16
    patience.reset()
    patience.wait(error)
    assert pauses[-1] == 0.1


def test_an_error_that_will_not_pass_is_not_sat_out() -> None:
    with pytest.raises(ServiceError):
        Patience(10.0).wait(ServiceError(422, "invalid_spec", "no"))


def test_events_are_parsed_by_the_standard() -> None:
    lines = [
        "retry: 1000",
        "",
        "id: 1",
        "event: log",
        'data: {"id": 1,',
        'data: "a": 2}',
        "",
        ": heartbeat",
        "",
        "id: 2",
    ]
    assert list(parse_events(lines)) == [{"id": 1, "a": 2}]


def test_somebody_elses_answer_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = Transport("http://127.0.0.1:1")
    transport._http = httpx.Client(
        base_url="http://127.0.0.1:1", transport=httpx.MockTransport(lambda _: httpx.Response(502, text="<html>"))
    )
    with pytest.raises(ServiceError) as caught:
        transport.request("GET", "/")
    assert caught.value.code == "http_502"
    transport.close()


@pytest.mark.parametrize(
    "error",
    [ServiceError(409, "code", "message", "param", {"a": 1}), Unreachable("url", "why"), JobTimeout("job_1", 2.0)],
)
def test_errors_survive_pickling(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.__dict__) == (str(error), error.__dict__)
