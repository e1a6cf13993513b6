"""A controller killed at any point of what it does, and one that is late beside another: real processes, both."""

import logging
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from .conftest import LEASE_SECONDS, PATIENCE_S, ROOT
from .picture import JobPicture, Json
from .planted import POINTS

pytestmark = pytest.mark.system
log = logging.getLogger(__name__)
QUICK = {"started", "registered"}


@contextmanager
def another_controller(running: Any, *module: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A second controller of the same home, which stands by, with the environment of the first; and its log."""
    running.wait_for(lambda: leader(running) == running.pid("controller"), PATIENCE_S, "the lead of the first")
    environ, path = running.environment("controller"), running.local.home / "second.log"
    with path.open("wb") as output:
        second = subprocess.Popen([sys.executable, "-m", *module], env=environ, cwd=ROOT, stderr=output)
    try:
        running.wait_for(lambda: "stands by" in path.read_text(), PATIENCE_S, "the second controller's readiness")
        yield second, path
    finally:
        second.kill()  # a process that is stopped dies of this as well
        second.wait()


@pytest.mark.parametrize("point", POINTS)
def test_a_controller_is_killed_right_after(
    running: Any, spec: Json, undisturbed: JobPicture, all_faults: bool, point: str
) -> None:
    if not all_faults and point not in QUICK:
        pytest.skip("`make faults` kills it at every point")
    with another_controller(running, "tests.faults.planted", point) as (second, _):
        running.kill("controller")
        job_id = running.submit(spec)
        ended = running.wait_for(lambda: second.poll() is not None, PATIENCE_S, f"the point: {point}")
        assert second.returncode == -signal.SIGKILL
    log.info("killed %.1f s after the submission", ended)
    running.succeeded(job_id, undisturbed)
    running.wait_for(running.is_ready, PATIENCE_S, "all parts")


def rows(running: Any, table: str) -> list[Any]:
    """All that a table of the store holds."""
    with closing(sqlite3.connect(running.local.database, timeout=60)) as connection:
        return connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3").fetchall()


def leader(running: Any) -> int:
    """The pid of the controller that leads."""
    (lead,) = rows(running, "leads")
    return int(lead[1].split(":")[1])


def test_of_two_controllers_one_works_and_a_late_one_writes_nothing(
    running: Any, spec: Json, undisturbed: JobPicture
) -> None:
    first = running.pid("controller")
    with another_controller(running, "service.controller") as (second, output):
        job_id = running.training({**spec, "training": {**spec["training"], "epochs": 100_000}})
        assert leader(running) == first

        running.stop_between_transactions(first)
        seconds = running.wait_for(lambda: leader(running) == second.pid, LEASE_SECONDS + 10, "another leader")
        log.info("another one leads after %.1f s of a lease of %g s", seconds, LEASE_SECONDS)
        assert seconds > LEASE_SECONDS / 2  # not while the first might be alive
        running.wait_for(lambda: f"{job_id} goes on" in output.read_text(), PATIENCE_S, "the job's adoption")
        step = running.step(running.client.jobs.show(job_id))
        running.job(job_id, lambda job: running.step(job) > step, PATIENCE_S)  # under the second

        running.stop_between_transactions(second.pid)  # whoever writes now is the first
        before = {table: rows(running, table) for table in ("jobs", "events", "metric_points", "leads")}
        os.kill(first, signal.SIGCONT)
        running.wait_for(lambda: not Path(f"/proc/{first}/cwd").exists(), LEASE_SECONDS, "the first one's end")
        assert {table: rows(running, table) for table in before} == before
        os.kill(second.pid, signal.SIGCONT)

        running.job(job_id, lambda job: running.step(job) > step + 10, PATIENCE_S)
        second.kill()
        # The first one's successor, which the supervisor has started, stands by, and knows that the second is gone.
        running.wait_for(lambda: leader(running) not in (first, second.pid), PATIENCE_S, "a third one's lead")
    running.client.jobs.cancel(job_id)
    assert running.job(job_id, running.ended, PATIENCE_S)["status"] == "cancelled"
    assert running.faults(job_id) == []
    running.check(job_id)
    running.succeeded(running.submit(spec), undisturbed)
