"""The commands of compose.yaml, run: all six processes up, jobs over the Ray workers, predictions, and what is lost.

Of the tests of the embedded service these are quick ones; the rest is in test_composed_system.py.
"""

# What is imported is for pytest to find.
# ruff: noqa: F401
from typing import Any

import pytest

from ..faults.conftest import PATIENCE_S, THOROUGH
from ..faults.picture import JobPicture, Json
from ..faults.test_processes import test_a_part_is_killed
from ..service.test_api_datasets import (
    nothing_left,
    test_a_broken_file_leaves_nothing,
    test_what_is_no_upload_is_refused,
)
from ..service.test_api_jobs import flowers, test_refusals_name_the_field
from ..system.test_controller import (
    test_a_diverging_job_registers_nothing,
    test_a_killed_api_is_back_at_once_and_the_stream_goes_on_without_a_gap,
    tracking,
)
from ..system.test_diagnostics import test_layers_are_watched_in_the_metrics_and_in_mlflow
from ..system.test_readme import service, test_the_commands_train_deploy_and_predict
from .composition import Composition
from .container import Container

pytestmark = pytest.mark.system
ROWS = [{"x": 0.1, "y": 0.2, "z": 0.0}, {"x": 2.0, "y": -2.0, "z": 0.0}]


def test_all_come_up_in_the_order_of_their_dependencies(composition: Composition) -> None:
    order = composition.started
    assert order.index("ray-head") < order.index("ray-worker")
    assert order[-1] == "controller"
    assert [len(each) for each in composition.containers.values()] == [1, 1, 1, 2, 1]


def test_a_job_is_tracked_deployed_and_answers(running: Any) -> None:
    """In its defaults, but for the names."""
    job_id = running.submit({"dataset": "points", "target": "kind", "model": {"name": "kinds", "deploy": "always"}})
    job = running.job(job_id, running.ended)
    assert job["status"] == "succeeded", job["error"]
    assert job["mlflow"]["run_id"]
    assert job["model"]["deployed"]
    predictions = running.client.predict("kinds", ROWS)["predictions"]
    assert [row["label"] for row in predictions] == ["in", "out"]


@pytest.mark.parametrize("workers", [2, 4])
def test_a_lost_ray_worker_costs_no_job_and_no_bit(
    composition: Composition, running: Any, spec: Json, undisturbed: JobPicture, all_faults: bool, workers: int
) -> None:
    """Two workers are on one of them, with their trainer: all is lost but the checkpoint. Four are on both."""
    if not all_faults and workers == 4:
        pytest.skip("`make faults` does it")
    job_id = running.submit({**spec, "distribution": {**spec["distribution"], "workers": workers}})

    def trains(job: Json) -> bool:
        """With all its workers: nobody is being recruited, and only those that have a job are in calls."""
        return running.step(job) > 20 and job["progress"]["workers"] == workers

    def at_work() -> Container | None:
        """A node one of whose workers is in a call: over nodes its title says so at moments alone."""
        nodes = composition.containers["ray-worker"]
        return next((node for node in nodes if node.processes("GradientWorker.")), None)

    running.job(job_id, trains)
    found: list[Container] = []
    running.wait_for(lambda: found.extend(filter(None, [at_work()])) or found, 10, "a worker is at work")
    lost = found[0]
    with running.work_goes_on(job_id, "a lost Ray worker"):
        lost.kill()
    running.wait_for(lambda: running.faults(job_id), 60, "a word of the loss")
    running.succeeded(job_id, undisturbed)
    lost.wait_until_healthy()  # it has been started again


@THOROUGH
def test_a_lost_ray_head_costs_no_job_and_no_bit(
    composition: Composition, running: Any, spec: Json, undisturbed: JobPicture
) -> None:
    job_id = running.training(spec)
    with running.work_goes_on(job_id, "a lost Ray head"):
        composition.containers["ray-head"][0].kill()
    running.succeeded(job_id, undisturbed)
    running.wait_for(running.is_ready, PATIENCE_S, "all parts")


def test_the_controllers_node_and_the_head_have_no_actors(composition: Composition, running: Any) -> None:
    """The store's disk is in the controller's container; trainers are beside their workers."""
    titles = ("TrainerHost", "GradientWorker", "ParameterAggregator")

    def having(title: str) -> set[str]:
        named = composition.containers.items()
        return {name for name, each in named if any(container.processes(title) for container in each)}

    for title in titles:
        running.wait_for(lambda title=title: having(title), 60, f"a {title} that waits")
        assert having(title) == {"ray-worker"}


def test_nothing_is_left(composition: Composition) -> None:
    family = [process for container in composition.running() for process in container.family()]
    assert len(family) > 10
    composition.down()
    assert not [process for process in family if process.is_running()]
