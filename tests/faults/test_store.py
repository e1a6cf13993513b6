"""The store locked by somebody else, and the clock moved, while jobs train."""

import logging
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx
import pytest

from .conftest import PATIENCE_S, THOROUGH
from .picture import JobPicture, Json

pytestmark = pytest.mark.system
log = logging.getLogger(__name__)
LOCKED_S = 30.0
KEY = {"Idempotency-Key": "while it is locked"}


@contextmanager
def locked(running: Any) -> Iterator[None]:
    """Another process's transaction, which keeps writers and readers out."""
    path = running.local.database
    with closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


def ask_on(running: Any, spec: Json, over: threading.Event, answers: list[httpx.Response]) -> None:
    """Whatever users ask for, again and again: reads and submissions."""
    with httpx.Client(base_url=running.local.url, timeout=60) as client:
        job_id = running.acknowledged[0]
        while not over.is_set():
            for path in ("/readyz", f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}/events"):
                answers.append(client.get(path))
            answers.append(client.post("/v1/jobs", json=spec, headers=KEY))


def test_a_store_that_is_locked_for_30_s_loses_nothing(
    running: Any, spec: Json, undisturbed: JobPicture, all_faults: bool
) -> None:
    seconds = LOCKED_S if all_faults else LOCKED_S / 3
    job_id = running.training(spec)
    short = {**spec, "training": {**spec["training"], "epochs": 1}}
    answers, over = list[httpx.Response](), threading.Event()
    users = [threading.Thread(target=ask_on, args=(running, short, over, answers)) for _ in range(8)]
    with running.work_goes_on(job_id, f"the store locked for {seconds:g} s, which count"):
        with locked(running):
            for user in users:
                user.start()
            time.sleep(seconds)  # the fault itself
            begun = time.monotonic()
            assert httpx.get(f"{running.local.url}/healthz", timeout=60).status_code == 200
            alive = time.monotonic() - begun
        over.set()
        for user in users:
            user.join()
    during = [answer for answer in answers if answer.status_code >= 500]
    log.info("healthz after %.2f s; %d answers, %d of 503", alive, len(answers), len(during))
    assert len(during) >= 8
    for answer in during:
        assert answer.status_code == 503, answer.text
        if answer.request.url.path == "/readyz":
            assert "store" in answer.json()["error"]["missing"] or answer.json()["parts"]["store"]["state"] == "up"
        else:
            assert (answer.json()["error"]["code"], answer.headers["Retry-After"]) == ("store_unavailable", "5")
    answer = httpx.post(f"{running.local.url}/v1/jobs", json=short, headers=KEY, timeout=60)
    running.acknowledged.append(made := answer.raise_for_status().json()["id"])
    assert {answer.json()["id"] for answer in answers if answer.status_code == 201} <= {made}
    assert running.job(made, running.ended, PATIENCE_S)["status"] == "succeeded"
    running.succeeded(job_id, undisturbed)


@THOROUGH
def test_a_controller_stopped_in_a_transaction_is_told_as_such(
    running: Any, spec: Json, undisturbed: JobPicture
) -> None:
    """SQLite without WAL: its lock is everybody's. Readers are told so; it goes on where it was."""
    job_id, controller = running.training(spec), running.pid("controller")
    database = running.local.database
    with httpx.Client(base_url=running.local.url, timeout=60) as client:
        for _ in range(500):
            os.kill(controller, signal.SIGSTOP)
            try:
                with closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as connection:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.rollback()
            except sqlite3.OperationalError:
                answer = client.get(f"/v1/jobs/{job_id}")
                os.kill(controller, signal.SIGCONT)
                break
            os.kill(controller, signal.SIGCONT)
            time.sleep(0.003)  # another moment
        else:
            pytest.fail("the controller was never stopped in a transaction")
    log.info("answered %d", answer.status_code)
    assert answer.status_code in (200, 503)  # it may hold the lock that lets readers in
    running.succeeded(job_id, undisturbed)
