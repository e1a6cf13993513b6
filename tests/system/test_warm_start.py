"""Jobs that start from another one's weights, in a whole service: any workers, any crash, the same weights."""

import csv
import warnings
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import ServiceError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of MLflow's own, about its own type hints, at its import
    from service.tracking import Tracking

pytestmark = pytest.mark.system

SPEC: dict[str, Any] = {"dataset": "points", "target": "kind"}
SOURCE: dict[str, Any] = {
    "network": {"hidden": [24], "activation": "tanh"},
    "optimizer": {"name": "adam", "learning_rate": 0.02},
    "schedule": "constant",
    "training": {"epochs": 5, "batch_size": 32, "early_stopping": None},
    "distribution": {"shards": 3},
}
LONG = {"epochs": 3000, "checkpoint_every_seconds": 1}  # long enough for a checkpoint, and for a fault after it


@pytest.fixture(scope="module")
def source(running: Any) -> dict[str, Any]:
    """A job of five epochs, in which it learns most."""
    return ended(running, running.client.jobs.submit({**SPEC, **SOURCE})["id"])


@pytest.fixture(scope="module")
def paused(running: Any) -> tuple[str, int]:
    """A job that has a checkpoint alone, and its step."""
    training = {**SOURCE["training"], "epochs": 100_000}
    job_id = str(running.client.jobs.submit({**SPEC, **SOURCE, "training": training, "name": "paused"})["id"])
    running.job(job_id, lambda job: running.step(job) > 150)
    running.client.jobs.pause(job_id)
    running.job(job_id, lambda job: job["status"] == "paused")
    return job_id, running.client.jobs.checkpoints(job_id)["data"][0]["step"]


def warm(running: Any, value: dict[str, Any], workers: int = 2, **changes: Any) -> str:
    """A job that starts from `value`: the id."""
    training = {"epochs": 5, "batch_size": 96, "early_stopping": None} | changes.pop("training", {})
    spec = {
        **SPEC,
        "optimizer": {"name": "adam", "learning_rate": 0.002},
        "training": {**training, "warm_start": value},
        "distribution": {"shards": 3, "workers": workers},
        **changes,
    }
    return str(running.client.jobs.submit(spec)["id"])


def ended(running: Any, job_id: str) -> dict[str, Any]:
    job = running.job(job_id, running.ended)
    assert job["status"] == "succeeded", job["error"]
    return dict(job)


def sha256(running: Any, job_id: str) -> str:
    return str(ended(running, job_id)["result"]["weights_sha256"])


def losses(running: Any, job_id: str) -> list[float]:
    """Of the validation rows, epoch by epoch."""
    return list(running.client.jobs.metrics(job_id)["series"]["validation_loss"]["values"])


def messages(running: Any, job_id: str) -> list[str]:
    return [event["message"] for event in running.client.jobs.events_page(job_id, limit=1000)["data"]]


def begun_warm(running: Any, job_id: str) -> int:
    """How many attempts began with the source's weights."""
    return sum(message.startswith("begins with the weights ") for message in messages(running, job_id))


def kill_trainers(running: Any) -> None:
    running.wait_for(lambda: running.processes("TrainerHost"), 60, "a trainer")
    running.kill_all("TrainerHost")


def test_it_goes_on_where_the_source_has_ended(running: Any, source: dict[str, Any]) -> None:
    """From the job and from the version that it was registered as: the same weights."""
    version = source["model"]["version"]
    jobs = [warm(running, {"job": source["id"]}), warm(running, {"model": "points", "version": version})]
    assert len({sha256(running, job_id) for job_id in jobs}) == 1
    before = losses(running, source["id"])
    for job_id in jobs:
        assert losses(running, job_id)[0] < 1.05 * before[-1] < 0.5 * before[0]
        assert begun_warm(running, job_id) == 1
    tracking = Tracking(running.local.endpoints["mlflow"])
    tags = [
        tracking.client.get_run(running.client.jobs.show(job_id)["mlflow"]["run_id"]).data.tags["fallline.warm_start"]
        for job_id in jobs
    ]
    assert tags == [source["id"], f"version {version} of points"]


def test_any_number_of_workers_gives_the_same_weights(running: Any, source: dict[str, Any]) -> None:
    found = [sha256(running, warm(running, {"job": source["id"]}, workers)) for workers in (1, 2, 3)]
    assert len(set(found)) == 1


def test_a_checkpoint_of_a_job_that_has_no_model_is_a_source(running: Any, paused: tuple[str, int]) -> None:
    job_id, step = paused
    named = warm(running, {"job": job_id, "step": step}, workers=1)
    newest = warm(running, {"job": job_id}, workers=3)
    assert sha256(running, named) == sha256(running, newest)
    spec = running.client.jobs.show(newest)["spec"]
    assert spec["training"]["warm_start"] == {"job": job_id, "step": step}
    assert losses(running, named)[0] < 0.6 * losses(running, job_id)[0]


@pytest.mark.parametrize("objects", [False, True], ids=["shared memory", "objects"])
def test_a_killed_trainer_changes_nothing(running: Any, source: dict[str, Any], objects: bool) -> None:
    """Soon after it began, and after a checkpoint of its own, which goes before the source's weights."""
    changes: dict[str, Any] = {"training": LONG}
    if objects:  # that norm goes across blocks: parameters and state are those of an aggregator
        changes = {"training": {**LONG, "epochs": 300}, "optimizer": {"name": "adam", "max_norm": 3.0}}
    start = {"job": source["id"]}
    wanted = sha256(running, warm(running, start, workers=1, **changes))
    job_id = warm(running, start, workers=3, **changes)
    running.wait_for(lambda: begun_warm(running, job_id), 60, "the job begins")
    kill_trainers(running)
    running.wait_for(lambda: running.client.jobs.checkpoints(job_id)["data"], 60, "a checkpoint")
    kill_trainers(running)
    assert sha256(running, job_id) == wanted
    assert begun_warm(running, job_id) >= 1
    assert any(message.startswith("goes on from the checkpoint") for message in messages(running, job_id))


def test_new_rows_of_the_same_columns_train_it_on(
    running: Any, source: dict[str, Any], table: Path, tmp_path: Path
) -> None:
    """Its features are treated as the source's were, whatever their mean is now."""
    with table.open(newline="") as file:
        head, *rows = csv.reader(file)
    path = tmp_path / "later.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *([str(float(x) / 2), y, z, kind] for x, y, z, kind in rows[:700])])
    running.client.datasets.upload(path, name="later")
    job_id = warm(running, {"job": source["id"]}, dataset="later", model={"name": "points"})
    job = ended(running, job_id)
    versions = running.client.models.show("points")["versions"]
    signatures = [each["signature"] for each in versions if each["job_id"] in (job_id, source["id"])]
    assert signatures[0] == signatures[1]
    row = [0.1, 0.2, 0.3]
    answer = running.client.predict("points", [row], version=job["model"]["version"])
    assert answer["predictions"][0]["label"] in ("in", "out")


def test_a_source_that_is_gone_before_the_job_starts_is_not_missed(running: Any, source: dict[str, Any]) -> None:
    longer = {"epochs": 1000}
    wanted = sha256(running, warm(running, {"job": source["id"]}, training=longer))
    twin = ended(running, running.client.jobs.submit({**SPEC, **SOURCE})["id"])
    assert twin["result"]["weights_sha256"] == source["result"]["weights_sha256"]
    job_id = warm(running, {"job": twin["id"]}, training=longer)
    running.client.jobs.pause(job_id)
    job = running.job(job_id, lambda job: job["status"] == "paused" or running.ended(job))
    deleted = httpx.delete(f"{running.local.url}/v1/jobs/{twin['id']}")
    assert deleted.status_code == 204
    if job["status"] == "paused":
        running.client.jobs.resume(job_id)
    assert sha256(running, job_id) == wanted


def test_what_cannot_be_a_source_is_refused_at_submission(running: Any, source: dict[str, Any]) -> None:
    for value, changes, param in (
        ({"job": "job_none"}, {}, "training.warm_start.job"),
        ({"job": source["id"], "step": 7}, {}, "training.warm_start.step"),
        ({"model": "points", "version": 99}, {}, "training.warm_start.version"),
        ({"job": source["id"]}, {"network": {"hidden": [9]}}, "network.hidden"),
    ):
        with pytest.raises(ServiceError) as refusal:
            warm(running, value, **changes)
        assert (refusal.value.status, refusal.value.param) == (422, param)
