"""A job that is scaled while it trains, by request: other workers, the same weights, and nothing left behind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import service_with_points

pytestmark = pytest.mark.system

SPEC: dict[str, Any] = {
    "dataset": "points",
    "target": "kind",
    "network": {"hidden": [32]},
    "optimizer": {"name": "sgd", "momentum": 0.9},
    "training": {"epochs": 600, "batch_size": 64, "early_stopping": None, "log_every_steps": 1000},
    "distribution": {"workers": 1, "shards": 4},
    "model": None,
}


def holders(running: Any) -> list[int]:
    """The workers that have a job's segment mapped."""
    workers = running.processes("GradientWorker")
    return [pid for pid in workers if "fallline-segment" in Path(f"/proc/{pid}/maps").read_text()]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, new_service: Any, table: Path) -> Iterator[Any]:
    with service_with_points(new_service, tmp_path_factory.mktemp("home"), table) as service:
        yield service


def test_a_job_goes_on_with_the_workers_that_are_asked_for(running: Any) -> None:
    client = running.client
    undisturbed = client.jobs.submit(SPEC)["id"]
    scaled = client.jobs.submit(SPEC)["id"]
    for workers in (3, 2):
        client.jobs.scale(scaled, workers)
        running.job(scaled, lambda job, wanted=workers: job["progress"]["workers"] == wanted)
    found = [running.job(job_id, running.ended) for job_id in (undisturbed, scaled)]
    running.wait_for(lambda: not holders(running), 10, "idle workers give their job's memory back")
    events = [event["message"] for event in client.jobs.events_page(scaled, limit=100)["data"]]
    assert [job["status"] for job in found] == ["succeeded"] * 2
    assert found[0]["result"]["weights_sha256"] == found[1]["result"]["weights_sha256"]
    assert "asked for 3 workers" in events
    assert any(message.startswith("scaled from 3 to 2 workers") for message in events), events
