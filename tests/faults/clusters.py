"""A service on a cluster of several nodes that somebody else has started, with a token; and the bits without any."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.ray_nodes import RayNodes
from service.local_service import LocalService
from service.planning import training_plan
from service.settings import Settings
from service.store import Store
from worker.exchange import InProcessExchange
from worker.recorder import Recorder
from worker.trainer import Trainer

from .conftest import LEASE_SECONDS, Watched
from .picture import Family

TOKEN = "RAY_AUTH_TOKEN"


@contextmanager
def service_on(nodes: RayNodes, worker_slots: int, table: Path, secret: Path, **settings: str) -> Iterator[Watched]:
    """The service, on the head's machine and home, with `table` as the dataset `points`; its jobs are spread over the
    nodes. It reads the cluster's token from a file in the folder `secret`."""
    token = secret / "token"
    token.write_text(os.environ[TOKEN])
    environ = {
        "FALLLINE_RAY_ADDRESS": nodes.address,
        "FALLLINE_PLACEMENT": "spread",
        "FALLLINE_WORKER_SLOTS": str(worker_slots),
        "FALLLINE_LEASE_SECONDS": str(LEASE_SECONDS),
        "RAY_AUTH_TOKEN_PATH": str(token),
    } | settings
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(TOKEN)
        local = LocalService(nodes.nodes[0].home, environ)
    with local:
        local.wait_until_ready()
        watched = Watched(local)
        watched.worker_slots = worker_slots
        watched.family = Family(os.getpid())  # the cluster's processes are none of the service's
        watched.client.datasets.upload(table, name="points")
        yield watched
        watched.client.close()


def in_one_process(running: Watched, job_id: str) -> str:
    """The hash that the job's plan leads to without any cluster."""
    settings = Settings.from_environment({"FALLLINE_HOME": str(running.local.home)})
    store = Store(settings.database_url)
    job = store.get_job(job_id)
    plan = training_plan(job, store.get_dataset(job.dataset_id), settings)
    store.close()
    return Trainer(replace(plan, checkpoint_folder=None), Recorder(1), InProcessExchange).run().weights_sha256


def workers(running: Watched) -> list[int]:
    """The pids of all workers."""
    return sorted(pid for pid, name in running.family.look().items() if "GradientWorker" in name)


def homes(running: Watched) -> set[str]:
    """Of the nodes that have a worker, as the environment says."""
    found = set()
    for pid in workers(running):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
            found |= {pair.removeprefix("FALLLINE_HOME=") for pair in pairs if pair.startswith("FALLLINE_HOME=")}
    return found
