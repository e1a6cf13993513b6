"""MLflow does what it is asked to, and its answer is lost: points and versions are there once."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.child import Child
from service.embedded import mlflow_server, own_environment
from service.ports import free_port

from ..system.conftest import service_with_points
from .conftest import LEASE_SECONDS, PATIENCE_S, WORKER_SLOTS, Watched
from .lossy_proxy import LossyProxy
from .picture import JobPicture, Json

pytestmark = pytest.mark.system
log = logging.getLogger(__name__)
SEED = int(os.environ.get("FALLLINE_FAULTS_SEED", "0"))
ALL, QUICK = 5, 1  # jobs whose answers are lost


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LossyProxy]:
    """A server of the module's own, behind a proxy."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    server = Child(mlflow_server(own_environment(), port, folder), folder / "log", grace=3.0)
    proxy = LossyProxy(port, SEED)
    yield proxy
    proxy.shutdown()
    proxy.server_close()
    server.kill()
    server.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, table: Path, mlflow: LossyProxy) -> Iterator[Watched]:
    environ = {"FALLLINE_MLFLOW_TRACKING_URI": mlflow.url}
    environ |= {"FALLLINE_WORKER_SLOTS": str(WORKER_SLOTS), "FALLLINE_LEASE_SECONDS": str(LEASE_SECONDS)}
    with service_with_points(Watched, tmp_path_factory.mktemp("home"), table, environ) as watched:
        yield watched


def test_answers_that_are_lost_register_nothing_twice(
    running: Any, spec: Json, undisturbed: JobPicture, mlflow: LossyProxy, all_faults: bool
) -> None:
    for _ in range(ALL if all_faults else QUICK):
        job_id = running.training(spec)
        mlflow.lost.clear()
        mlflow.loses = 0.4
        running.job(job_id, running.ended, PATIENCE_S)
        mlflow.loses = 0.0
        running.succeeded(job_id, undisturbed)
        log.info("seed %d: %d answers were lost: %s", SEED, len(mlflow.lost), sorted(set(mlflow.lost)))
        assert mlflow.lost
