"""A job with a range of workers on a cluster with a real autoscaler: a node comes for it, and goes again after it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ray_nodes import RayNodes
from service.embedded import own_environment

from .autoscaled import autoscaler
from .clusters import TOKEN, in_one_process, service_on, workers
from .conftest import THOROUGH, Watched
from .kills import PATIENCE_S

pytestmark = [pytest.mark.system, THOROUGH]

SLOTS = (1, 2)  # of the head, and of the node that there is not at first
IDLE_S, REST_S = 3.0, 3.0


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[RayNodes]:
    with RayNodes(SLOTS, own_environment(), os.environ[TOKEN], tmp_path, at_first=1) as found:
        yield found


@pytest.fixture
def running(nodes: RayNodes, table: Path, tmp_path: Path) -> Iterator[Watched]:
    (tmp_path / "secret").mkdir()
    (tmp_path / "home1").mkdir()
    with (
        autoscaler(nodes, SLOTS[1], 1, IDLE_S, tmp_path),
        service_on(nodes, sum(SLOTS), table, tmp_path / "secret", FALLLINE_NODE_REST_SECONDS=str(REST_S)) as watched,
    ):
        yield watched


def raylets(running: Watched) -> int:
    return sum(name.split()[0].endswith("/raylet") for name in running.family.look().values())


def test_a_node_comes_for_a_job_and_goes_when_it_has_ended(running: Watched) -> None:
    spec: dict[str, Any] = {
        "dataset": "points",
        "target": "kind",
        "network": {"hidden": [32, 16], "dropout": 0.1},
        "training": {"epochs": 10_000, "batch_size": 96, "early_stopping": None},
        "distribution": {"workers": {"min": 1, "max": 3}, "shards": 4},
    }
    job_id = running.submit(spec)
    alone = running.job(job_id, lambda job: running.step(job) > 0, PATIENCE_S)
    assert (alone["progress"]["workers"], len(workers(running))) == (1, 1)
    grown = running.job(job_id, lambda job: job["progress"]["workers"] == 3 or running.ended(job), PATIENCE_S)
    assert (grown["status"], grown["progress"]["workers"], raylets(running)) == ("running", 3, 2)
    done = running.job(job_id, running.ended, PATIENCE_S)
    assert done["status"] == "succeeded", done["error"]
    assert done["result"]["weights_sha256"] == in_one_process(running, job_id)
    assert done["result"]["worker_failures"] == 0
    running.wait_for(lambda: raylets(running) == 1, PATIENCE_S, "the node goes away")
