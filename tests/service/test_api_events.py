"""A job's events over HTTP: as a list, and live: taken up again without a gap, ended with the job or the service."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.records import NewEvent

from .conftest import Api

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def job(api: Api) -> str:
    """A running job with the events 1 (queued) and 2 (started)."""
    made = api.fill.job()
    held = api.store.claim_job("controller", 60.0)
    assert held is not None
    assert held.id == made.id
    return made.id


def say(api: Api, job: str, *messages: str) -> None:
    api.store.set_progress(job, 1, {}, events=[NewEvent("log", "info", message, {}) for message in messages])


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The events of a stream, each checked against its own lines."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if line and name:
            fields[name] = value
        elif "data" in fields:
            found = json.loads(fields["data"])
            assert (fields["id"], fields["event"]) == (str(found["id"]), found["type"])
            yield found
            fields = {}


def test_streams_that_wait_for_the_same_share_what_they_read(
    api: Api, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, looks, open_streams = api.app.state.context.store, list[int](), threading.Semaphore(0)
    real = store.events_after

    def counted(job_id: str, after: int, limit: int) -> Any:
        looks.append(after)
        return real(job_id, after, limit)

    def read() -> list[str]:
        with httpx.stream("GET", f"{api.client.base_url}/v1/jobs/{job}/events", headers=STREAM, timeout=60) as answer:
            found = []
            for event in events(answer.iter_lines()):
                found.append(event["message"])
                if len(found) == 2:
                    open_streams.release()
            return found

    monkeypatch.setattr(store, "events_after", counted)
    with ThreadPoolExecutor(30) as pool:
        streams = [pool.submit(read) for _ in range(30)]
        for _ in streams:
            assert open_streams.acquire(timeout=30)
        say(api, job, "for all of them")
        api.store.finish_job(job, 1, "failed", {"message": "over"})
        assert {tuple(stream.result()) for stream in streams} == {("queued", "started", "for all of them", "over")}
    assert looks.count(3) + looks.count(4) <= 10, "after the news there was a look for each"


def test_a_list_is_oldest_first_and_goes_on_behind_any_event(api: Api, job: str) -> None:
    say(api, job, "a", "b")
    found = api.client.get(f"/v1/jobs/{job}/events?limit=3").json()
    assert [entry["message"] for entry in found["data"]] == ["queued", "started", "a"]
    assert (found["has_more"], found["last_id"], found["data"][0]["object"]) == (True, 3, "job.event")
    assert [entry["id"] for entry in api.client.get(f"/v1/jobs/{job}/events?after=3").json()["data"]] == [4]
    assert api.client.get("/v1/jobs/job_none/events").status_code == 404
    assert api.client.get("/v1/jobs/job_none/events", headers=STREAM).status_code == 404
    api.fill.succeed(job)


def test_a_stream_is_live_and_ends_with_the_job(api: Api, job: str) -> None:
    with api.client.stream("GET", f"/v1/jobs/{job}/events", headers=STREAM) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = events(answer.iter_lines())
        assert [next(found)["message"] for _ in range(2)] == ["queued", "started"]
        for number in range(5):  # each is seen before the next is said
            say(api, job, f"line {number}")
            assert next(found)["message"] == f"line {number}"
        api.fill.succeed(job)
        assert [entry["data"] for entry in found] == [{"status": "succeeded"}]


def test_a_stream_that_broke_off_is_taken_up_without_a_gap(api: Api, job: str) -> None:
    def write() -> None:
        for number in range(30):
            say(api, job, f"{number} a", f"{number} b")

    writer = threading.Thread(target=write)
    writer.start()
    seen: list[int] = []
    ended = False
    while not ended:
        headers = STREAM | ({"Last-Event-ID": str(seen[-1])} if seen else {})
        with api.client.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as answer:
            found = events(answer.iter_lines())
            for _ in range(7):  # and then the connection is dropped
                if len(seen) == 2 + 60:
                    writer.join()
                    api.fill.succeed(job)
                entry = next(found, None)
                ended = entry is None
                if entry is None:
                    break
                seen.append(entry["id"])
    writer.join()
    assert seen == list(range(1, 2 + 60 + 1 + 1))


def test_an_ended_jobs_stream_gives_what_was_missed_and_ends(api: Api, job: str) -> None:
    api.fill.succeed(job)
    for last, expected in (("0", [1, 2, 3]), ("2", [3]), ("3", []), ("99", [])):
        with api.client.stream("GET", f"/v1/jobs/{job}/events", headers=STREAM | {"Last-Event-ID": last}) as answer:
            assert [entry["id"] for entry in events(answer.iter_lines())] == expected


@pytest.mark.parametrize("last", ["-1", "x", "1.5", "9" * 30])
def test_what_is_no_event_is_refused(api: Api, job: str, last: str) -> None:
    answer = api.client.get(f"/v1/jobs/{job}/events", headers=STREAM | {"Last-Event-ID": last})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "Last-Event-ID")
    api.store.finish_job(job, 1, "failed")


def test_many_streams_and_a_deleted_job(api: Api, job: str) -> None:
    streams = [api.client.stream("GET", f"/v1/jobs/{job}/events?after=2", headers=STREAM) for _ in range(50)]
    found = [events(stream.__enter__().iter_lines()) for stream in streams]
    say(api, job, "heard by all")
    assert {next(one)["message"] for one in found} == {"heard by all"}
    api.store.finish_job(job, 1, "cancelled")
    api.store.delete_job(job)
    for one, stream in zip(found, streams, strict=True):
        assert len(list(one)) <= 1  # the end, or nothing: the job is gone
        stream.__exit__(None, None, None)


def test_streams_go_on_after_the_store_has_failed_for_a_while(api: Api, job: str) -> None:
    """The watcher is one for all streams: it must outlive whatever befalls the store."""
    with api.client.stream("GET", f"/v1/jobs/{job}/events?after=2", headers=STREAM) as answer:
        with api.store.database.write() as connection:
            connection.exec_driver_sql("ALTER TABLE counters RENAME TO counters_away")
        looked = threading.Event()
        watcher = api.app.state.context.watcher
        failed = watcher.failures
        while watcher.failures == failed:
            looked.wait(0.01)
        with api.store.database.write() as connection:
            connection.exec_driver_sql("ALTER TABLE counters_away RENAME TO counters")
        said = time.perf_counter()
        say(api, job, "still here")
        assert next(events(answer.iter_lines()))["message"] == "still here"
        assert time.perf_counter() - said < 10  # and not by the next heartbeat
        api.fill.succeed(job)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_an_open_stream_does_not_keep_the_service_from_ending(api: Api, job: str, tmp_path: Path) -> None:
    """A process of its own, on the same store."""
    port = free_port()
    home = str(tmp_path / "home")
    environment = {**os.environ, "FALLLINE_HOME": home, "FALLLINE_PORT": str(port)}
    environment["FALLLINE_DATABASE_URL"] = api.settings.database_url
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-m", "service.app"], cwd=root, env=environment) as process:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0) as client:
            while process.poll() is None:
                try:
                    client.get("/healthz")
                    break
                except httpx.TransportError:
                    threading.Event().wait(0.05)
            with client.stream("GET", f"/v1/jobs/{job}/events", headers=STREAM) as answer:
                found = events(answer.iter_lines())
                assert next(found)["message"] == "queued"
                assert next(found)["message"] == "started"
                asked = time.perf_counter()
                process.send_signal(signal.SIGTERM)
                assert list(found) == []  # an orderly end, which the client takes up again elsewhere
        assert process.wait(15) in (0, -signal.SIGTERM)
        assert time.perf_counter() - asked < 10
    api.fill.succeed(job)
