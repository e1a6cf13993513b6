"""`fallline serve` as a whole: up within seconds, up again after kills, and nothing left of it at any end.

One service goes through the tests of this module in their order; each starts on what the last one has left.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from service import launcher
from service.local_service import LocalService
from service.ports import LOOPBACK
from worker.checkpoint_store import CheckpointStore

from .conftest import Service

pytestmark = pytest.mark.system

SPEC: dict[str, Any] = {
    "dataset": "points",
    "target": "kind",
    # Long enough that a fault comes while it trains: some seconds.
    "training": {"epochs": 1200, "batch_size": 128, "early_stopping": None, "log_every_steps": 40},
    "distribution": {"workers": 2, "shards": 2},
    "model": {"name": "points", "deploy": "always"},
}
ROWS = [{"x": 0.1, "y": 0.2, "z": 0.0}, {"x": 2.0, "y": -2.0, "z": 0.0}]


def in_shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def before() -> set[str]:
    return in_shared_memory()


def ray_folder(running: Any) -> Path:
    """Ray's folder of sockets and scratch files, which lies outside of the home."""
    found = set()
    for pid in running.processes("--temp-dir="):
        with suppress(FileNotFoundError, ProcessLookupError):  # Ray's workers end before they are known to anybody
            found |= {a for a in Path(f"/proc/{pid}/cmdline").read_text().split("\0") if a.startswith("--temp-dir=")}
    (argument,) = found
    folder = Path(argument.removeprefix("--temp-dir="))
    assert folder.is_dir()
    return folder


@pytest.fixture(scope="module")
def local(home: Path, before: set[str]) -> Iterator[LocalService]:
    with LocalService(home) as service:
        yield service


@pytest.fixture
def running(local: LocalService) -> Iterator[Service]:
    service = Service(local)
    yield service
    service.client.close()


def test_mlflows_port_is_nobody_elses_before_it_listens_there(running: Any) -> None:
    """Ray takes dozens of free ones meanwhile, and MLflow would not come up for as long as the service lives."""
    port = int(running.local.endpoints["mlflow"].rpartition(":")[2])
    with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
        stranger.bind((LOOPBACK, port))


def test_it_accepts_jobs_before_the_rest_is_up(running: Any, table: Path) -> None:
    health = running.client.health()
    assert not health["ready"]
    assert "mlflow" in health["missing"]
    running.client.datasets.upload(table, name="points")
    job = running.client.jobs.submit(SPEC)
    assert job["status"] == "queued"
    running.local.wait_until_ready()
    job = running.job(job["id"], running.ended)
    assert job["status"] == "succeeded", job["error"]
    assert job["model"] == {"name": "points", "version": 1, "deployed": True}
    output = running.local.output
    assert f"Fall Line accepts jobs: {running.local.url}" in output.read_text()
    running.wait_for(lambda: "everything is up" in output.read_text(), 10, "the line that says so")


def test_a_second_one_on_the_same_home_is_refused(running: Any, home: Path) -> None:
    environ = {**os.environ, "FALLLINE_HOME": str(home), "FALLLINE_PORT": "0", "FALLLINE_MLFLOW_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "serve"], env=environ, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert f"in use by process {running.supervisor}" in done.stderr
    running.wait_for(running.is_ready, 60, "the first one, as ever")


def test_a_taken_port_is_told(running: Any, tmp_path: Path) -> None:
    port = running.local.url.rpartition(":")[2]
    environ = {**os.environ, "FALLLINE_HOME": str(tmp_path), "FALLLINE_PORT": port}
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "serve"], env=environ, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert f"port {port} is in use: set FALLLINE_PORT" in done.stderr


def test_a_killed_launcher_leaves_no_orphan(running: Any) -> None:
    api = running.local.endpoints["pids"]["api"]
    above = launcher.parent_of(api)
    assert above is not None
    os.kill(above, signal.SIGKILL)
    running.wait_for(lambda: launcher.parent_of(api) is None, 60, "the end of the API whose launcher was killed")
    running.wait_for(running.is_ready, 60, "the API's return")
    assert "api killed by signal 9, started again" in running.local.output.read_text()


def test_it_talks_to_this_machine_alone(running: Any) -> None:
    sockets = []
    for pid in running.processes():
        with suppress(psutil.NoSuchProcess):  # Ray ends those that it does not need any more
            sockets += psutil.Process(pid).net_connections("inet")
    listening = {c.laddr for c in sockets if c.status == psutil.CONN_LISTEN}
    assert len(listening) > 5
    assert {address.ip for address in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_ctrl_c_leaves_nothing(running: Any, before: set[str]) -> None:
    """But what a job has done: its checkpoint."""
    family, folder = [running.supervisor, *running.processes()], ray_folder(running)
    assert len(family) > 10
    training = {**SPEC["training"], "checkpoint_every_seconds": 86_400}
    job_id = running.client.jobs.submit({**SPEC, "training": training})["id"]
    step = running.step(running.job(job_id, lambda job: running.step(job) > 100))
    assert running.local.end(signal.SIGINT) == 0
    (kept,) = CheckpointStore(running.local.home / "checkpoints" / job_id).list()
    assert kept.step >= step
    assert [pid for pid in family if launcher.parent_of(pid) is not None] == []
    assert in_shared_memory() <= before
    assert not folder.exists()
    assert not (running.local.home / "run" / "endpoints.json").exists()


def test_started_again_it_has_its_jobs_and_serves_its_models(local: LocalService) -> None:
    local.start()
    running = Service(local)
    answer = running.client.predict("points", ROWS)  # at once: it takes neither Ray nor MLflow
    assert [p["label"] for p in answer["predictions"]] == ["in", "out"]
    jobs = running.client.jobs.list()["data"]
    assert [job["status"] for job in jobs[1:]] == ["succeeded"]
    local.wait_until_ready()
    last = running.job(jobs[0]["id"], running.ended)
    assert last["status"] == "succeeded"
    assert {job["result"]["weights_sha256"] for job in [last, *jobs[1:]]} == {last["result"]["weights_sha256"]}
    messages = [event["message"] for event in running.client.jobs.events_page(last["id"], limit=100)["data"]]
    assert any(message.startswith("goes on from the checkpoint of step ") for message in messages), messages
    running.client.close()


def test_killed_it_leaves_nothing_within_10_s(running: Any, before: set[str]) -> None:
    job = running.client.jobs.submit(SPEC)
    running.job(job["id"], lambda job: running.step(job) > 20)
    family, folder = [running.supervisor, *running.processes()], ray_folder(running)
    running.local.send(signal.SIGKILL)
    running.local.wait()
    running.wait_for(lambda: not [pid for pid in family if launcher.parent_of(pid) is not None], 10, "the end of all")
    assert in_shared_memory() <= before
    assert not folder.exists()
