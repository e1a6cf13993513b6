"""Many requests at once, and requests that race what happens anyway: over HTTP, to a real service."""

import asyncio
import logging
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import httpx
import pytest

from service.client import FINAL_STATUSES, ServiceError
from service.supervisor import END_SECONDS

from .conftest import PATIENCE_S, THOROUGH
from .picture import JobPicture, Json

pytestmark = pytest.mark.system
log = logging.getLogger(__name__)
AT_ONCE, STREAMS = 100, 500
SEED = int(os.environ.get("FALLLINE_FAULTS_SEED", "0"))
ALL, QUICK = 10, 1  # races of each kind


def test_a_hundred_submissions_at_once_under_one_key_are_one_job(running: Any, spec: Json) -> None:
    short = {**spec, "training": {**spec["training"], "epochs": 1}}
    together, taken = Barrier(AT_ONCE), list[float]()

    def submit(_: int) -> str:
        with httpx.Client(base_url=running.local.url, timeout=60) as client:
            client.get("/healthz")  # connected
            together.wait(PATIENCE_S)
            while True:
                begun = time.monotonic()
                answer = client.post("/v1/jobs", json=short, headers={"Idempotency-Key": "a hundred"})
                taken.append(time.monotonic() - begun)
                if answer.status_code == 201:
                    return str(answer.json()["id"])
                assert answer.status_code == 409, answer.text
                assert answer.json()["error"]["code"] == "idempotency_in_progress"

    before = len(running.client.jobs.list(limit=100)["data"])
    with ThreadPoolExecutor(AT_ONCE) as pool:
        (job_id,) = set(pool.map(submit, range(AT_ONCE)))
    running.acknowledged.append(job_id)
    log.info("%d answers, the slowest after %.2f s", len(taken), max(taken))
    assert len(running.client.jobs.list(limit=100)["data"]) == before + 1
    assert running.job(job_id, running.ended, PATIENCE_S)["status"] == "succeeded"
    running.check(job_id)


@THOROUGH
def test_a_hundred_jobs_submitted_at_once_are_a_hundred(running: Any, spec: Json) -> None:
    """Each under a key of its own; none is refused, though the store takes one writer at a time."""
    together, taken = Barrier(AT_ONCE), list[float]()

    def submit(number: int) -> str:
        with httpx.Client(base_url=running.local.url, timeout=60) as client:
            client.get("/healthz")  # connected
            together.wait(PATIENCE_S)
            begun = time.monotonic()
            answer = client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": f"one of a hundred: {number}"})
            taken.append(time.monotonic() - begun)
            assert answer.status_code == 201, answer.text
            return str(answer.json()["id"])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = set(pool.map(submit, range(AT_ONCE)))
    running.acknowledged += found
    assert len(found) == AT_ONCE
    log.info("the slowest of %d submissions took %.2f s", len(taken), max(taken))
    for job_id in found:
        running.client.jobs.cancel(job_id)
    for job_id in found:
        running.job(job_id, running.ended, PATIENCE_S)
    running.check(*found)


@pytest.fixture(scope="module")
def seeds(all_faults: bool) -> list[int]:
    return list(range(SEED, SEED + (ALL if all_faults else QUICK)))


def ends_once(running: Any, job_id: str, undisturbed: JobPicture, told: str) -> str:
    """The final status, which is the only one that the job's events tell of; a success is the undisturbed one's."""
    job = running.job(job_id, running.ended, PATIENCE_S)
    statuses = [event["data"]["status"] for event in running.events(job_id) if event["type"] == "status"]
    assert [status for status in statuses if status in FINAL_STATUSES] == [job["status"]], told
    assert statuses[-1] == job["status"], told
    running.check(job_id, undisturbed=undisturbed)
    log.info("%s: %s", told, " ".join(statuses))
    return str(job["status"])


def wish(running: Any, what: str, job_id: str) -> None:
    """Asks for it; it may come too late."""
    try:
        getattr(running.client.jobs, what)(job_id)
    except ServiceError as error:
        if error.code != "invalid_transition":
            raise


def test_a_cancellation_that_races_the_end_wins_or_comes_too_late(
    running: Any, spec: Json, undisturbed: JobPicture, seeds: list[int]
) -> None:
    for seed in seeds:
        draw = random.Random(seed)
        job_id = running.training(spec)
        last = undisturbed.job["progress"]["steps"]
        running.job(job_id, lambda job, last=last: running.step(job) >= 0.9 * last or running.ended(job), PATIENCE_S)
        time.sleep(draw.uniform(0, 1.5))  # the moment is the experiment
        wish(running, "cancel", job_id)
        assert ends_once(running, job_id, undisturbed, f"seed {seed}, cancel and the end") in ("succeeded", "cancelled")


@pytest.mark.parametrize("crash", ["none", "controller", pytest.param("trainer", marks=THOROUGH)])
def test_cancel_pause_and_resume_race_each_other_and_a_crash(
    running: Any, spec: Json, undisturbed: JobPicture, seeds: list[int], crash: str
) -> None:
    """In any order, at once. What is left paused goes on; where cancel came, it is cancelled."""
    for seed in seeds:
        draw = random.Random(seed)
        job_id = running.training(spec)
        calls = [(draw.uniform(0, 0.3), name) for name in ("pause", "resume", "cancel")[: 2 + draw.randrange(2)]]

        def ask(call: tuple[float, str], job_id: str = job_id) -> None:
            time.sleep(call[0])  # the moment is the experiment
            wish(running, call[1], job_id)

        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, call) for call in calls]
            if crash == "controller":
                running.kill("controller")
            elif crash == "trainer":
                running.kill_all("TrainerHost")
            for each in asked:
                each.result()
        is_cancelled = "cancel" in [name for _, name in calls]
        if not is_cancelled:
            running.job(job_id, lambda job: not job["pause_requested"], PATIENCE_S)
            wish(running, "resume", job_id)
        told = f"seed {seed}, {[name for _, name in sorted(calls)]}, crash: {crash}"
        assert ends_once(running, job_id, undisturbed, told) == ("cancelled" if is_cancelled else "succeeded"), told


async def read_streams(url: str, job_id: str, count: int, opened: asyncio.Event) -> list[bytes]:
    """What `count` event streams of the job give until each is closed by the service."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    left = count

    async def read() -> bytes:
        nonlocal left
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: text/event-stream\r\n\r\n"
        writer.write(head.encode())
        found = await reader.readuntil(b"id: 1\n")
        left -= 1
        if left == 0:
            opened.set()
        try:
            return found + await reader.read()
        finally:
            writer.close()

    return await asyncio.gather(*(read() for _ in range(count)))


def test_sigterm_with_500_open_event_streams_ends_within_the_stated_time(
    running: Any, spec: Json, undisturbed: JobPicture
) -> None:
    """The module's last test but for the start after it. Each stream ends in order, after a whole event."""
    job_id = running.training({**spec, "training": {**spec["training"], "epochs": 100_000}})

    async def run() -> tuple[list[bytes], float]:
        opened = asyncio.Event()
        begun = time.monotonic()
        streams = asyncio.create_task(read_streams(running.local.url, job_id, STREAMS, opened))
        await asyncio.wait_for(opened.wait(), PATIENCE_S)
        log.info("%d streams are open after %.1f s", STREAMS, time.monotonic() - begun)
        begun = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            submitted = await asyncio.get_running_loop().run_in_executor(pool, running.submit, spec)
        log.info("a submission beside them took %.2f s", time.monotonic() - begun)
        running.client.jobs.cancel(submitted)
        begun = time.monotonic()
        assert await asyncio.to_thread(running.local.end, signal.SIGTERM) == 0
        return await streams, time.monotonic() - begun

    streams, seconds = asyncio.run(run())
    log.info("all of it has ended %.1f s after SIGTERM", seconds)
    assert seconds < END_SECONDS
    assert {stream[-5:] for stream in streams} == {b"0\r\n\r\n"}, "a stream was cut off"
    running.wait_for(lambda: not running.family.escaped(), END_SECONDS, "the end of every process")
    running.start_again()
    running.wait_for(running.is_ready, PATIENCE_S, "all parts")  # the checker asks MLflow, too
    running.job(job_id, lambda job: running.step(job) > 0, PATIENCE_S)
    running.client.jobs.cancel(job_id)
    running.job(job_id, running.ended, PATIENCE_S)
    running.check(job_id)
