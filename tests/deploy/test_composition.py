"""The commands of compose.yaml, run: all six processes up, a job over both Ray workers, a prediction, a lost worker."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """What `condition` gives, as soon as that is true."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)  # polls a condition
    return found


def at_work(nodes: list[Container]) -> Container | None:
    """A node one of whose workers is in a call: over object references its title says so at moments alone."""
    return next((node for node in nodes if node.processes("GradientWorker.")), None)


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

    def trains() -> bool:
        """With all its workers: nobody is being recruited, and only those that have a job are in calls."""
        progress = client.jobs.show(job_id)["progress"] or {"step": 0}
        return bool(progress["step"] > 20 and progress["workers"] == 2)

    def told() -> set[str]:
        return {event["type"] for event in client.jobs.events_page(job_id, limit=100)["data"]}

    wait_for(trains, 60, "the job trains")
    lost: Container = wait_for(lambda: at_work(composition.containers["ray-worker"]), 10, "a worker is at work")
    lost.kill()
    wait_for(lambda: "fault" in told(), 60, "the loss is noticed")
    job = client.jobs.wait(job_id, timeout_s=180)
    assert job["status"] == "succeeded", job
    assert job["result"]["weights_sha256"] == first["result"]["weights_sha256"]
    lost.wait_until_healthy()  # it has been started again


def test_nothing_is_left(composition: Composition) -> None:
    family = [process for container in composition.running() for process in container.family()]
    assert len(family) > 10
    composition.down()
    assert not [process for process in family if process.is_running()]
