"""A long queue, submitted over HTTP, and a service that is killed and started again: none is lost, the order is kept.

How long submissions take beside it is measured by `make bench BENCH=queue`.
"""

import logging
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..system.conftest import service_with_points
from .conftest import PATIENCE_S, THOROUGH, WORKER_SLOTS, Watched
from .picture import Json

pytestmark = [pytest.mark.system, THOROUGH]
log = logging.getLogger(__name__)
JOBS = 10_000
CLIENTS, FIRST = 4, 3  # jobs that are watched as they start


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, table: Path) -> Iterator[Watched]:
    environ = {"FALLLINE_WORKER_SLOTS": str(WORKER_SLOTS), "FALLLINE_MAX_RUNNING_JOBS": "1"}
    with service_with_points(Watched, tmp_path_factory.mktemp("home"), table, environ) as watched:
        yield watched


def submit_many(running: Any, spec: Json, count: int) -> list[str]:
    """The ids that were acknowledged, of `count` jobs that several clients submit at once."""

    def submit(share: int) -> list[str]:
        with httpx.Client(base_url=running.local.url, timeout=60) as client:
            answers = [client.post("/v1/jobs", json=spec).raise_for_status() for _ in range(share)]
            return [answer.json()["id"] for answer in answers]

    with ThreadPoolExecutor(CLIENTS) as pool:
        return [job_id for share in pool.map(submit, [count // CLIENTS] * CLIENTS) for job_id in share]


def in_turn(running: Any, status: str) -> list[str]:
    """The jobs of that status, oldest first."""
    found, page = list[str](), {"has_more": True, "last_id": None}
    while page["has_more"]:
        page = running.client.jobs.list(status=status, limit=100, after=page["last_id"])
        found += [job["id"] for job in page["data"]]
    return found[::-1]


def test_a_long_queue_is_there_after_a_kill_and_in_its_order(running: Any, spec: Json) -> None:
    first = running.training({**spec, "training": {**spec["training"], "epochs": 1_000_000}})
    begun = time.monotonic()
    acknowledged = submit_many(running, {**spec, "training": {**spec["training"], "epochs": 1}}, JOBS)
    log.info("%d jobs submitted in %.1f s", JOBS, time.monotonic() - begun)
    running.acknowledged += acknowledged
    queue = in_turn(running, "queued")
    assert sorted(queue) == sorted(acknowledged)

    with running.work_goes_on(first, f"{JOBS} queued jobs, kill -9 of the supervisor, and a new start"):
        running.local.send(signal.SIGKILL)
        running.local.wait()
        running.wait_for(lambda: not running.family.escaped(), PATIENCE_S, "the end of all")
        running.start_again()
    assert in_turn(running, "queued") == queue
    running.client.jobs.cancel(first)
    ahead = [running.job(job_id, running.ended, PATIENCE_S) for job_id in queue[:FIRST]]
    assert [job["status"] for job in ahead] == ["succeeded"] * FIRST
    starts = [job["started_at"] for job in ahead]
    assert starts == sorted(starts)
    left = in_turn(running, "queued")
    assert left == queue[-len(left) :], "a job was started out of turn"
    running.check(*queue[:FIRST])
