"""Jobs over the nodes of a real Ray cluster, a head and three more on this machine: the bits of one process.

Nodes share no home: workers of the others have no way to the head's files but through Ray.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.ray_nodes import RayNodes
from core.network import NetworkSpec
from core.optimizers import OptimizerSpec
from service.embedded import own_environment
from worker.cluster import Cluster
from worker.placement import PACK, SPREAD
from worker.plan import TrainingPlan
from worker.pool import node_of

from .test_cluster import Watch, in_process, wait_for

pytestmark = pytest.mark.system

MakePlan = Callable[..., TrainingPlan]
SLOTS = (2, 2, 2, 2)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """The driver, this process, has the same settings (tests/conftest.py)."""
    with RayNodes(SLOTS, own_environment(), os.environ["RAY_AUTH_TOKEN"], tmp_path_factory.mktemp("nodes")) as found:
        yield found


@pytest.fixture(params=[PACK, SPREAD])
def cluster(request: pytest.FixtureRequest, nodes: RayNodes) -> Iterator[Cluster]:
    joined = Cluster(nodes.address, 60.0, placement=request.param)
    wait_for(lambda: joined.capacity().worker_slots == sum(SLOTS), 60)
    yield joined
    for handle in joined.running():
        joined.kill(handle)
    joined.close()


JOBS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": OptimizerSpec("sgd", 0.05)},
    "adamw, clipped": {"optimizer": OptimizerSpec("adamw", 0.01, weight_decay=0.01, clip_norm=0.5)},
    "dropout": {"network": NetworkSpec(1, 1, (24, 12), dropout=0.2)},
    # Three blocks, and so as many aggregators at most.
    "wide": {"network": NetworkSpec(1, 1, (400, 400), dropout=0.2), "epochs": 1},
}


@pytest.mark.parametrize("job", JOBS)
def test_the_weights_are_those_of_one_process(cluster: Cluster, make_plan: MakePlan, job: str) -> None:
    plan = make_plan(shards=6, **JOBS[job])
    wanted, points = in_process(plan)
    for workers in range(1, 7):
        watch = Watch(cluster.start(replace(plan, job_id=f"job_{workers}"), 1, workers))
        result = watch.result()
        assert (result.weights_sha256, result.worker_failures) == (wanted.weights_sha256, 0)
        assert watch.points == points
        crew = watch.handle.crew
        assert len(crew.workers) == workers
        used = {node_of(name) for name in crew.workers}
        assert len(used) == (-(-workers // 2) if crew.placement == PACK else min(workers, 4))
        assert {node_of(name) for name in crew.aggregators} == used
        cluster.release(watch.handle)
