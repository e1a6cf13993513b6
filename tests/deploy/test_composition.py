"""The commands of compose.yaml, run: all six processes up, a job over both Ray workers, a prediction, a lost worker."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.client import FallLine

from ..system.conftest import table  # noqa: F401
from .composition import Composition, Container

pytestmark = pytest.mark.system

SPEC: dict[str, Any] = {
    "dataset": "points",
    "target": "kind",
    # Long enough that a worker node is lost while it trains: some seconds.
    "training": {"epochs": 400, "batch_size": 128, "early_stopping": None, "log_every_steps": 40},
    "distribution": {"workers": 2, "shards": 2},
    "model": {"name": "points", "deploy": "always"},
}
ROWS = [{"x": 0.1, "y": 0.2, "z": 0.0}, {"x": 2.0, "y": -2.0, "z": 0.0}]


@pytest.fixture(scope="module")
def composition(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composition]:
    with Composition(tmp_path_factory.mktemp("compose")) as found:
        yield found


@pytest.fixture(scope="module")
def client(composition: Composition) -> Iterator[FallLine]:
    with FallLine(composition.url) as client:
        yield client


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)  # polls a condition


def at_work(node: Container) -> int:
    """How many of the node's workers have a job: in shared memory, or over object references."""
    return len(node.processes("GradientWorker.take_seat")) + len(node.processes("GradientWorker.gradients"))


def test_all_come_up_in_the_order_of_their_dependencies(composition: Composition, client: FallLine) -> None:
    order = composition.up()
    assert order.index("ray-head") < order.index("ray-worker")
    assert order[-1] == "controller"
    assert [len(each) for each in composition.containers.values()] == [1, 1, 1, 2, 1]
    wait_for(lambda: client.health()["ready"], 60, "/readyz says that every part is up")


def test_a_job_over_the_ray_workers_is_tracked_deployed_and_answers(client: FallLine, table: Path) -> None:  # noqa: F811
    client.datasets.upload(table, name="points")
    job = client.jobs.wait(client.jobs.submit(SPEC)["id"], timeout_s=120)
    assert job["status"] == "succeeded", job
    assert job["mlflow"]["run_id"]
    assert job["model"]["deployed"]
    predictions = client.predict("points", ROWS)["predictions"]
    assert [row["label"] for row in predictions] == ["in", "out"]


def test_a_lost_worker_node_costs_no_job_and_no_bit(composition: Composition, client: FallLine) -> None:
    (first,) = client.jobs.list()["data"]
    job_id = client.jobs.submit(SPEC)["id"]
    wait_for(lambda: (client.jobs.show(job_id)["progress"] or {}).get("step", 0) > 20, 60, "the job trains")
    nodes = composition.containers["ray-worker"]
    wait_for(lambda: any(at_work(node) for node in nodes), 10, "a worker is at work")
    lost = max(nodes, key=at_work)
    (raylet,) = lost.processes("raylet/raylet")
    os.kill(raylet, signal.SIGKILL)
    lost.wait_until_ended()
    job = client.jobs.wait(job_id, timeout_s=180)
    assert job["status"] == "succeeded", job
    assert job["result"]["weights_sha256"] == first["result"]["weights_sha256"]
    assert "fault" in [event["type"] for event in client.jobs.events(job_id)]  # it was noticed
    lost.wait_until_healthy()  # it has been started again


def test_nothing_is_left(composition: Composition) -> None:
    running = [container.child.pid for each in composition.containers.values() for container in each if container.child]
    family = [process for pid in running for process in psutil.Process(pid).children(recursive=True)]
    assert len(family) > 10
    composition.down()
    assert not [process for process in family if process.is_running()]
