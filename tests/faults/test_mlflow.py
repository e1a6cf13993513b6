"""MLflow does what it is asked to, and its answer is lost: points and versions are there once."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.child import Child
from service.embedded import mlflow_server, own_environment
from service.ports import LOOPBACK, free_port, held

from ..system.conftest import service_with_points
from .conftest import LEASE_SECONDS, PATIENCE_S, WORKER_SLOTS, Watched
from .lossy_proxy import LossyProxy
from .picture import JobPicture, Json

pytestmark = pytest.mark.system
log = logging.getLogger(__name__)
ALL, QUICK = 3, 1  # answers about each path that are lost, one after the other


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LossyProxy]:
    """A server of the module's own, behind a proxy."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    with held(LOOPBACK, port):
        server = Child(mlflow_server(own_environment(), port, folder), folder / "log", grace=3.0)
        proxy = LossyProxy(port)
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
    for times in range(1, 1 + (ALL if all_faults else QUICK)):
        mlflow.lost.clear()
        mlflow.loses = times
        begun = time.monotonic()
        job_id = running.submit(spec)
        running.job(job_id, running.ended, times * PATIENCE_S)
        mlflow.loses = 0
        log.info("%d answers about %d paths were lost", mlflow.lost.total(), len(mlflow.lost))
        log.info("the job took %.1f s", time.monotonic() - begun)
        running.succeeded(job_id, undisturbed)
        wanted = ("runs/create", "runs/log-batch", "logged-models", "model-versions/create", "runs/update")
        for path in wanted:
            assert any(path in lost for lost in mlflow.lost), f"{path}: {sorted(mlflow.lost)}"
