"""Jobs through every outage: MLflow hangs or dies, the controller, a trainer or all of Ray is killed.

After each, the checker: same weights, every metric once in the store and in MLflow, exactly one version.
"""

import math
import threading
import warnings
from typing import Any

import pytest

from service.client import FallLine, ServiceError
from service.tracked import JOB_TAG

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of MLflow's own, about its own type hints, at its import
    from service.tracking import Tracking

pytestmark = pytest.mark.system

SPEC: dict[str, Any] = {
    "dataset": "points",
    "target": "kind",
    # Long enough that a fault comes while it trains: some seconds.
    "training": {"epochs": 1200, "batch_size": 128, "early_stopping": None, "log_every_steps": 40},
    "distribution": {"workers": 2, "shards": 2},
}


@pytest.fixture
def tracking(running: Any) -> Tracking:
    return Tracking(running.local.endpoints["mlflow"])


@pytest.fixture(scope="module")
def weights(running: Any) -> str:
    """The hash that every undisturbed or disturbed run of SPEC must end with."""
    job = running.job(running.client.jobs.submit(SPEC)["id"], running.ended)
    return str(job["result"]["weights_sha256"])


def submitted(running: Any, **changes: Any) -> str:
    return str(running.client.jobs.submit({**SPEC, **changes})["id"])


def training(running: Any, job_id: str) -> Any:
    return running.job(job_id, lambda job: running.step(job) > 10)


def messages(running: Any, job_id: str, kind: str) -> list[str]:
    return [e["message"] for e in running.client.jobs.events_page(job_id)["data"] if e["type"] == kind]


def run_status(running: Any, tracking: Tracking, job_id: str) -> str | None:
    """How the job's run stands in MLflow; None: it has none yet."""
    run = running.client.jobs.show(job_id)["mlflow"]
    return None if run is None else str(tracking.client.get_run(run["run_id"]).info.status)


def check(running: Any, tracking: Tracking, job: Any, weights: str) -> None:
    """What must hold of a job that succeeded, whatever happened meanwhile."""
    assert job["status"] == "succeeded", job["error"]
    assert job["result"]["weights_sha256"] == weights
    run = tracking.client.get_run(job["mlflow"]["run_id"])
    assert run.info.status == "FINISHED"
    series = running.client.jobs.metrics(job["id"])["series"]
    assert set(series) >= {"train_loss", "validation_loss", "validation_accuracy"}
    for name, found in series.items():
        history = tracking.client.get_metric_history(run.info.run_id, name)
        assert sorted((m.step, m.value) for m in history) == list(zip(found["steps"], found["values"], strict=True))
        assert len(set(found["steps"])) == len(found["steps"])
    steps = job["progress"]["steps"]
    logged = job["spec"]["training"]["log_every_steps"]
    assert len(series["train_loss"]["steps"]) == math.ceil(steps / logged)
    versions = tracking.client.search_model_versions("name = 'points'")
    assert [v.version for v in versions if v.tags[JOB_TAG] == job["id"]] == [str(job["model"]["version"])]
    events = running.client.jobs.events_page(job["id"])["data"]
    assert [e["id"] for e in events] == list(range(1, len(events) + 1))


def test_a_job_that_does_not_fit_says_so_and_is_overtaken_by_one_that_does(running: Any, weights: str) -> None:
    first = submitted(running, training={**SPEC["training"], "epochs": 2400})
    training(running, first)
    second, third = submitted(running), submitted(running, distribution={"workers": 1, "shards": 2})
    waiting = running.job(second, lambda job: job["status_reason"])
    assert (waiting["status"], waiting["status_reason"]) == ("queued", "waiting for 2 free worker slots")
    jobs = [running.job(job_id, running.ended) for job_id in (first, second, third)]
    assert [job["status"] for job in jobs] == ["succeeded"] * 3
    assert jobs[1]["status_reason"] is None
    assert jobs[0]["started_at"] <= jobs[2]["started_at"] <= jobs[1]["started_at"]
    assert jobs[1]["result"]["weights_sha256"] == jobs[2]["result"]["weights_sha256"] == weights


def test_a_diverging_job_registers_nothing(running: Any, tracking: Tracking) -> None:
    job_id = submitted(
        running,
        network={"activation": "relu"},  # tanh bounds whatever comes
        optimizer={"name": "sgd", "learning_rate": 1e30},
        model={"name": "diverged", "deploy": "always"},
    )
    job = running.job(job_id, running.ended)
    assert job["status"] == "failed"
    assert job["error"]["code"] == "diverged"
    assert {"step", "shard", "hint"} <= job["error"].keys()
    running.wait_for(lambda: run_status(running, tracking, job_id) == "FAILED", 60, "the end of the failed run")
    assert tracking.production(["diverged"]) == {}
    with pytest.raises(ServiceError, match="diverged"):
        running.client.models.show("diverged")


def test_without_a_model_a_job_is_tracked_and_not_registered(running: Any, tracking: Tracking, weights: str) -> None:
    job = running.job(submitted(running, model=None, metadata={"team": "x"}), running.ended)
    assert (job["status"], job["model"]) == ("succeeded", None)
    assert tracking.client.get_run(job["mlflow"]["run_id"]).data.tags["team"] == "x"
    assert not [v for v in tracking.client.search_model_versions() if v.tags[JOB_TAG] == job["id"]]


def test_policies_deploy_and_a_move_in_mlflow_is_followed(running: Any, tracking: Tracking) -> None:
    def version(**changes: Any) -> Any:
        return running.job(submitted(running, **changes), running.ended)["model"]

    policy = {"name": "policy", "deploy": "if_better"}
    short = {"epochs": 1, "batch_size": 128, "early_stopping": None}
    assert version(model=policy, training=short) == {"name": "policy", "version": 1, "deployed": True}
    assert version(model=policy) == {"name": "policy", "version": 2, "deployed": True}
    assert version(model=policy, training=short)["deployed"] is False
    assert version(model=policy, split={"validation": 0.3})["deployed"] is False
    running.wait_for(lambda: tracking.production(["policy"]) == {"policy": 2}, 60, "the alias in MLflow")
    tracking.client.set_registered_model_alias("policy", "production", "3")
    rows = [{"x": 0.0, "y": 0.0, "z": 0.0}]
    running.wait_for(lambda: running.client.predict("policy", rows)["version"] == 3, 60, "the move made in MLflow")
    running.client.models.deploy("policy", 1)
    assert running.client.predict("policy", rows)["version"] == 1
    running.wait_for(lambda: tracking.production(["policy"]) == {"policy": 1}, 60, "the move made here")
    assert running.client.predict("policy", rows)["version"] == 1


def test_a_killed_api_is_back_at_once_and_the_stream_goes_on_without_a_gap(running: Any) -> None:
    job_id = submitted(running)
    seen: list[dict[str, Any]] = []

    def watch() -> None:
        with FallLine(running.local.url) as client:
            seen.extend(client.jobs.events(job_id))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    at_kill = running.step(training(running, job_id))
    killed = running.local.endpoints["pids"]["api"]
    running.kill("api")
    seconds = running.wait_for(lambda: running.local.endpoints["pids"].get("api") != killed, 30, "another API")
    job = running.job(job_id, running.ended)
    watcher.join(30)
    assert not watcher.is_alive()
    assert seconds < 15
    assert job["status"] == "succeeded"
    assert running.step(job) > at_kill
    assert [event["id"] for event in seen] == list(range(1, len(seen) + 1))
    assert seen[-1]["data"]["status"] == "succeeded"
    # Training did not notice: one attempt, all steps.
    assert [e["type"] for e in seen].count("fault") == 0


def test_a_paused_job_gives_its_slots_back_and_goes_on_where_it_was(
    running: Any, tracking: Tracking, weights: str
) -> None:
    job_id = submitted(running)
    training(running, job_id)
    assert running.client.jobs.pause(job_id)["pause_requested"]
    paused = running.job(job_id, lambda job: job["status"] == "paused")
    assert (paused["pause_requested"], paused["finished_at"]) == (False, None)
    step = running.step(paused)
    assert 10 < step < paused["progress"]["steps"]

    other = running.job(submitted(running), running.ended)  # it has the slots meanwhile
    assert other["status"] == "succeeded"
    assert running.client.jobs.show(job_id)["status"] == "paused"
    running.kill("controller")
    running.client.jobs.resume(job_id)
    check(running, tracking, running.job(job_id, running.ended), weights)
    assert f"goes on from the checkpoint of step {step}" in messages(running, job_id, "checkpoint")
    assert messages(running, job_id, "status") == ["queued", "started", "paused", "resumed", "started", "succeeded"]
