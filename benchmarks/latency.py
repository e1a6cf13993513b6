"""Time, as a person feels it: how soon the service accepts jobs, and a job takes its first step; how fast it answers.

Usage: python -m benchmarks time     (starts a service of its own in a temporary home)
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.race import Options
from benchmarks.rows import Row
from benchmarks.tables import TABLES
from service.client import FallLine
from service.local_service import LocalService

SUBMISSIONS, WARM_JOBS = 40, 5
SMALL: dict[str, Any] = {"dataset": "digits", "target": "label", "distribution": {"workers": 2, "shards": 2}}
LONG = SMALL | {"training": {"epochs": 100_000, "batch_size": 128, "early_stopping": None}, "model": None}
SHORT = SMALL | {"training": {"epochs": 3, "batch_size": 128}, "model": None}


def seconds(call: Callable[[], Any]) -> float:
    """How long `call` takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def first_step(client: FallLine) -> float:
    """From the submission to the first committed step, as the API tells of it."""
    began = time.perf_counter()
    job_id = client.jobs.submit(SHORT)["id"]
    while not client.jobs.show(job_id)["progress"]["step"]:
        time.sleep(0.01)
    took = time.perf_counter() - began
    client.jobs.wait(job_id)
    return took


def submissions_while_training(client: FallLine) -> list[float]:
    """Seconds of each submission while two jobs train."""
    training = [client.jobs.submit(LONG)["id"] for _ in range(2)]
    while not all(client.jobs.show(job_id)["progress"]["step"] > 10 for job_id in training):
        time.sleep(0.05)
    submitted: list[str] = []
    found = [seconds(lambda: submitted.append(client.jobs.submit(SHORT)["id"])) for _ in range(SUBMISSIONS)]
    for job_id in (*submitted, *training):
        client.jobs.cancel(job_id)
    for job_id in training:
        client.jobs.wait(job_id)
    return found


def row(case: str, ours: float, goal: float) -> Row:
    """A goal that is a number of seconds, not a peer's."""
    return Row("time", case, ours, goal, "s", ours / goal, 1.0, ceiling=True)


def run(_results: Path, _options: Options) -> list[Row]:
    """The rows of section time that concern the service itself; `peer` is the goal."""
    began = time.perf_counter()
    with LocalService() as service, FallLine(service.url) as client, tempfile.TemporaryDirectory() as folder:
        accepts = time.perf_counter() - began
        service.wait_until_ready()
        client.datasets.upload(TABLES["digits"]().write_csv(Path(folder) / "digits.csv"), name="digits")
        first_step(client)  # prepares the dataset, warms the pool
        steps = [first_step(client) for _ in range(WARM_JOBS)]
        submits = submissions_while_training(client)
    return [
        row("from `fallline serve` to the first answer of the API", accepts, 3.0),
        row("from a submission to the first committed step, warm, median", statistics.median(steps), 0.5),
        row("a submission while two jobs train, median", statistics.median(submits), 0.05),
    ]
