"""Jobs through every outage: MLflow hangs or dies, the controller, a trainer or all of Ray is killed.

After each, the checker: same weights, every metric once in the store and in MLflow, exactly one version.
"""

import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from service.client import ServiceError
from service.tracked import JOB_TAG

from .conftest import service_with_points

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of MLflow's own, about its own type hints, at its import
    from service.tracking import Tracking

pytestmark = pytest.mark.system

SPEC: dict[str, Any] = {
    "dataset": "points",
    "target": "kind",
    # Long enough that a fault comes while it trains: some seconds.
    "training": {"epochs": 400, "batch_size": 128, "early_stopping": None, "log_every_steps": 40},
    "distribution": {"workers": 2, "shards": 2},
}
SLOTS = 3
LEASE = 6.0  # seconds: short, so that the test of two controllers need not wait for long


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, new_service: Any, table: Path) -> Iterator[Any]:
    environ = {"FALLLINE_WORKER_SLOTS": str(SLOTS), "FALLLINE_LEASE_SECONDS": str(LEASE)}
    with service_with_points(new_service, tmp_path_factory.mktemp("home"), table, environ) as service:
        yield service


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


def test_a_hung_mlflow_delays_no_job_and_loses_no_metric(running: Any, tracking: Tracking, weights: str) -> None:
    job_id = submitted(running)
    training(running, job_id)
    with running.stopped("mlflow"):
        # The reconcile loop goes on: another job comes and is cancelled, at the usual pace.
        other = submitted(running, distribution={"workers": 1, "shards": 2})
        training(running, other)
        running.client.jobs.cancel(other)
        begun = time.monotonic()
        running.job(other, running.ended)
        assert time.monotonic() - begun < 5
        waiting = running.job(job_id, lambda job: job["progress"]["phase"] == "registering" and job["status_reason"])
        assert waiting["status_reason"].startswith("waiting for MLflow since 20")
        assert waiting["status"] == "running"
        running.wait_for(lambda: running.client.health().get("missing") == ["mlflow"], 15, "readyz naming MLflow")
        late = submitted(running)
        running.job(late, lambda job: job["progress"]["phase"] == "registering")
        assert running.client.jobs.cancel(late)["status"] == "cancelled"  # not only when MLflow is back
    check(running, tracking, running.job(job_id, running.ended), weights)
    assert len([m for m in messages(running, job_id, "log") if m.startswith("waiting for MLflow")]) == 1
    cancelled = running.client.jobs.show(other)
    assert cancelled["status"] == "cancelled"
    for ended in (other, late):
        running.wait_for(
            lambda id=ended: run_status(running, tracking, id) == "KILLED", 10, f"the end of {ended}'s run"
        )
    assert not [v for v in tracking.client.search_model_versions() if v.tags[JOB_TAG] == late]


def test_a_killed_mlflow_comes_back_and_has_everything(running: Any, tracking: Tracking, weights: str) -> None:
    job_id = submitted(running)
    training(running, job_id)
    running.kill("mlflow")
    check(running, tracking, running.job(job_id, running.ended), weights)


def test_a_killed_controller_finds_its_trainer_again(running: Any, tracking: Tracking, weights: str) -> None:
    job_id = submitted(running)
    training(running, job_id)
    trainers = running.processes("TrainerHost")
    running.kill("controller")
    check(running, tracking, running.job(job_id, running.ended), weights)
    assert messages(running, job_id, "fault") == []
    assert set(trainers) <= set(running.processes("TrainerHost"))
    assert len(messages(running, job_id, "log")) == len(set(messages(running, job_id, "log")))


def test_a_killed_trainer_is_followed_by_another(running: Any, tracking: Tracking, weights: str) -> None:
    job_id = submitted(running)
    training(running, job_id)
    for pid in running.processes("TrainerHost"):
        os.kill(pid, signal.SIGKILL)
    check(running, tracking, running.job(job_id, running.ended), weights)
    assert len(messages(running, job_id, "fault")) == 1


def test_a_killed_worker_costs_nothing_but_time(running: Any, tracking: Tracking, weights: str) -> None:
    job_id = submitted(running)
    training(running, job_id)
    at_work = running.processes("GradientWorker.")
    assert at_work
    os.kill(at_work[0], signal.SIGKILL)
    job = running.job(job_id, running.ended)
    check(running, tracking, job, weights)
    assert job["result"]["worker_failures"] >= 1


def test_ray_may_die_altogether(running: Any, tracking: Tracking, weights: str) -> None:
    job_id = submitted(running)
    training(running, job_id)
    before = running.local.endpoints["ray"]
    running.kill("ray")
    running.wait_for(lambda: running.local.endpoints["ray"] != before, 10, "another Ray")
    check(running, tracking, running.job(job_id, running.ended), weights)
    running.wait_for(running.is_ready, 30, "all parts")


def test_a_job_that_does_not_fit_says_so_and_is_overtaken_by_one_that_does(running: Any, weights: str) -> None:
    first = submitted(running, training={**SPEC["training"], "epochs": 800})
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
    running.wait_for(lambda: run_status(running, tracking, job_id) == "FAILED", 10, "the end of the failed run")
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
    running.wait_for(lambda: tracking.production(["policy"]) == {"policy": 2}, 10, "the alias in MLflow")
    tracking.client.set_registered_model_alias("policy", "production", "3")
    rows = [{"x": 0.0, "y": 0.0, "z": 0.0}]
    running.wait_for(lambda: running.client.predict("policy", rows)["version"] == 3, 15, "the move made in MLflow")
    running.client.models.deploy("policy", 1)
    assert running.client.predict("policy", rows)["version"] == 1
    running.wait_for(lambda: tracking.production(["policy"]) == {"policy": 1}, 10, "the move made here")
    assert running.client.predict("policy", rows)["version"] == 1


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


@contextmanager
def another_controller(running: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A second controller of the same home, with the environment of the first."""
    first = running.local.endpoints["pids"]["controller"]
    pairs = Path(f"/proc/{first}/environ").read_bytes().decode().split("\0")
    environ = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    with (running.local.home / "second.log").open("wb") as log:
        second = subprocess.Popen([sys.executable, "-m", "service.controller"], env=environ, stderr=log)
    try:
        yield second
    finally:
        second.kill()  # a process that is stopped dies of this as well
        second.wait()


def rows(running: Any, table: str) -> list[Any]:
    """All that a table of the store holds."""
    with closing(sqlite3.connect(running.local.home / "fallline.db")) as connection:
        return connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3").fetchall()


def leader(running: Any) -> int:
    """The pid of the controller that leads."""
    (lead,) = rows(running, "leads")
    return int(lead[1].split(":")[1])


def stop_between_transactions(running: Any, pid: int) -> None:
    """SIGSTOP to a controller at a moment when it does not hold SQLite's lock, which would stop everybody."""
    for _ in range(100):
        os.kill(pid, signal.SIGSTOP)
        with closing(sqlite3.connect(running.local.home / "fallline.db", timeout=0.5)) as connection:
            with suppress(sqlite3.OperationalError):  # database is locked
                connection.execute("BEGIN IMMEDIATE")
                connection.rollback()
                return
        os.kill(pid, signal.SIGCONT)
    raise AssertionError("the controller holds the store's lock whenever it is stopped")


def test_of_two_controllers_one_works_and_a_late_one_writes_nothing(
    running: Any, tracking: Tracking, weights: str
) -> None:
    first, log = running.local.endpoints["pids"]["controller"], running.local.home / "second.log"
    with another_controller(running) as second:
        running.wait_for(lambda: "stands by" in log.read_text(), 30, "the second controller's readiness")
        job_id = submitted(running, training={**SPEC["training"], "epochs": 8000})
        training(running, job_id)
        assert leader(running) == first

        stop_between_transactions(running, first)
        seconds = running.wait_for(lambda: leader(running) == second.pid, LEASE + 5, "another leader")
        assert seconds > LEASE / 2  # not while the first might be alive
        running.wait_for(lambda: f"{job_id} goes on" in log.read_text(), 30, "the job's adoption")
        step = running.step(running.client.jobs.show(job_id))
        running.job(job_id, lambda job: running.step(job) > step)  # under the second

        stop_between_transactions(running, second.pid)  # whoever writes now is the first
        before = {table: rows(running, table) for table in ("jobs", "events", "metric_points", "leads")}
        os.kill(first, signal.SIGCONT)
        running.wait_for(lambda: not Path(f"/proc/{first}/cwd").exists(), LEASE, "the first one's end")
        assert {table: rows(running, table) for table in before} == before
        os.kill(second.pid, signal.SIGCONT)

        assert running.step(running.job(job_id, lambda job: running.step(job) > step + 10)) > step
        second.kill()
        # The first one's successor, which the supervisor has started, stands by, and knows that the second is gone.
        running.wait_for(lambda: leader(running) not in (first, second.pid), 30, "a third one's lead")
    running.client.jobs.cancel(job_id)
    assert running.job(job_id, running.ended)["status"] == "cancelled"
    assert messages(running, job_id, "fault") == []
    undisturbed = running.job(submitted(running), running.ended)
    check(running, tracking, undisturbed, weights)
