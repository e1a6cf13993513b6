"""Nodes and services whose libraries are held to other kernels: who computes other bits takes no part."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.ray_nodes import RayNodes
from core.network import NetworkSpec
from core.optimizers import OptimizerSpec
from service.embedded import own_environment
from worker.cluster import Cluster
from worker.numerics import fingerprint
from worker.placement import SPREAD
from worker.plan import TrainingPlan
from worker.pool import WORKER, kind_of, node_of
from worker.ray_actors import ACTORS
from worker.trainer_host import AUTO, OBJECTS

from ..kernels import LEVELS, another_kernel, fingerprint_with, kernel, needs_avx2
from .conftest import Service, service_with_points
from .test_cluster import Watch, in_process, wait_for
from .test_nodes import node_name
from .test_supervisor import SPEC

pytestmark = [pytest.mark.system, needs_avx2]

MakePlan = Callable[..., TrainingPlan]
SLOTS, PINNED = (1, 1, 1), 2  # the number of a node


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """A head and two nodes, the last of which is held to another kernel than this processor's own."""
    pinned = {PINNED: {"OPENBLAS_CORETYPE": another_kernel()}}
    environ, token, folder = own_environment(), os.environ["RAY_AUTH_TOKEN"], tmp_path_factory.mktemp("nodes")
    with RayNodes(SLOTS, environ, token, folder, of_nodes=pinned) as found:
        yield found


@pytest.mark.parametrize("exchange", [AUTO, OBJECTS])
def test_a_node_that_computes_other_bits_takes_no_part(nodes: RayNodes, make_plan: MakePlan, exchange: str) -> None:
    """Neither its worker nor its aggregator, which would come to another norm of the gradient. The job goes on."""
    network = NetworkSpec(1, 1, (700, 700))  # 8 blocks: each node's aggregator would have some
    optimizer = OptimizerSpec("sgd", 0.05, clip_norm=0.01)
    plan = make_plan(shards=6, batch_size=6, epochs=2, network=network, optimizer=optimizer)
    wanted, points = in_process(plan)
    cluster = Cluster(nodes.address, 60.0, exchange, SPREAD)
    try:
        wait_for(lambda: cluster.capacity().worker_slots == sum(SLOTS), 120)
        cluster.warm(1, sum(SLOTS))
        wait_for(lambda: len(ACTORS.holders(workers(), 1.0)) == sum(SLOTS), 120)
        watch = Watch(cluster.start(plan, 1, len(SLOTS)))
        refused = next(name for name in watch.handle.crew.workers if node_of(name) == node_name(nodes, PINNED))
        result = watch.result()
        assert (result.weights_sha256, result.numerics) == (wanted.weights_sha256, fingerprint())
        assert (result.worker_failures, watch.points) == (0, points)
        assert watch.handle.poll(0).progress.workers == 2
        told = {event.data["worker"]: event for event in watch.events}
        assert {node_of(name) for name in told} == {node_of(refused)}
        assert len(told) == 2
        assert told[refused].message == f"{refused} computes other bits than the rest, and takes no part"
        other = fingerprint_with(OPENBLAS_CORETYPE=another_kernel())
        assert (told[refused].data["numerics"], told[refused].data["expected"]) == (other, fingerprint())
        cluster.release(watch.handle)
    finally:
        for handle in cluster.running():
            cluster.kill(handle)
        cluster.close()


def workers() -> list[str]:
    return [name for name in ACTORS.names() if kind_of(name) == WORKER]


def test_a_service_hands_the_pins_on_to_its_workers(tmp_path: Path, table: Path) -> None:
    pins = {"OPENBLAS_CORETYPE": another_kernel(), "NPY_DISABLE_CPU_FEATURES": LEVELS[-1]}
    with service_with_points(Service, tmp_path / "home", table, pins) as service:
        job = service.job(service.client.jobs.submit(SPEC)["id"], service.ended)
        assert job["status"] == "succeeded", job["error"]
        assert job["result"]["numerics"] == fingerprint_with(**pins)
        assert kernel(job["result"]["numerics"]) == another_kernel()
