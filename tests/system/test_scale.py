"""A job that is scaled while it trains, by request: other workers, the same weights, and nothing left behind."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.system

SPEC: dict[str, Any] = {
    "dataset": "points",
    "target": "kind",
    "network": {"hidden": [32]},
    "optimizer": {"name": "sgd", "momentum": 0.9},
    "training": {"epochs": 4000, "batch_size": 64, "early_stopping": None, "log_every_steps": 1000},
    "distribution": {"workers": 1, "shards": 4},
    "model": None,
}


def holders(running: Any) -> list[int]:
    """The workers that have a job's segment mapped."""
    found = []
    for pid in running.processes("GradientWorker"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            found += [pid] if "fallline-segment" in Path(f"/proc/{pid}/maps").read_text() else []
    return found


def test_a_job_goes_on_with_the_workers_that_are_asked_for(running: Any) -> None:
    client = running.client
    undisturbed = running.job(client.jobs.submit(SPEC)["id"], running.ended)
    job_id = client.jobs.submit(SPEC)["id"]
    running.job(job_id, lambda job: running.step(job) > 0)
    for workers in (3, 2):
        client.jobs.scale(job_id, workers)
        running.job(job_id, lambda job, wanted=workers: job["progress"]["workers"] == wanted)
    scaled = running.job(job_id, running.ended)
    running.wait_for(lambda: not holders(running), 10, "idle workers give their job's memory back")
    events = [event["message"] for event in client.jobs.events_page(job_id, limit=100)["data"]]
    assert [job["status"] for job in (undisturbed, scaled)] == ["succeeded"] * 2
    assert scaled["result"]["weights_sha256"] == undisturbed["result"]["weights_sha256"]
    assert "asked for 3 workers" in events
    assert any(message.startswith("scaled from 3 to 2 workers") for message in events), events
