"""Jobs over the nodes of a real Ray cluster, a head and three more on this machine: the bits of one process.

Nodes share no home: workers of the others have no way to the head's files but through Ray.
"""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from benchmarks.ray_nodes import RayNodes
from core.network import NetworkSpec
from core.optimizers import OptimizerSpec
from service.embedded import own_environment
from worker.cluster import Cluster
from worker.errors import TrainerLost
from worker.placement import PACK, SPREAD
from worker.plan import TrainingPlan
from worker.pool import WORKER, kind_of, node_of
from worker.ray_actors import ACTORS
from worker.trainer_host import AUTO, OBJECTS

from .test_cluster import LONG, Watch, calls_of, gone, in_process, pids_of, wait_for

pytestmark = pytest.mark.system

MakePlan = Callable[..., TrainingPlan]
SLOTS = (2, 2, 2, 2)
SEEDS = itertools.count(100)  # of splits that no node has seen before


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """The driver, this process, has the same settings (tests/conftest.py)."""
    with RayNodes(SLOTS, own_environment(), os.environ["RAY_AUTH_TOKEN"], tmp_path_factory.mktemp("nodes")) as found:
        yield found


@pytest.fixture(params=[(PACK, AUTO), (SPREAD, AUTO)], ids=[PACK, SPREAD])
def cluster(request: pytest.FixtureRequest, nodes: RayNodes) -> Iterator[Cluster]:
    """All slots have a worker that waits: a job does not wait long for one that is still starting."""
    placement, exchange = request.param
    joined = Cluster(nodes.address, 60.0, exchange, placement)
    wait_for(lambda: joined.capacity().worker_slots == sum(SLOTS), 120)
    joined.warm(1, sum(SLOTS))
    wait_for(lambda: len(ACTORS.holders(workers(), 1.0)) == sum(SLOTS), 120)
    yield joined
    for handle in joined.running():
        joined.kill(handle)
    joined.close()


def workers() -> list[str]:
    return [name for name in ACTORS.names() if kind_of(name) == WORKER]


JOBS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": OptimizerSpec("sgd", 0.05)},
    "adamw, clipped": {"optimizer": OptimizerSpec("adamw", 0.01, weight_decay=0.01, clip_norm=0.5)},
    "dropout": {"network": NetworkSpec(1, 1, (24, 12), dropout=0.2)},
    "local, half precision": {"local_steps": 3, "half_gradients": True},
    # 17 blocks: an aggregator on each node; 12 MB of gradients a step: three of them over object references.
    "wide": {"network": NetworkSpec(1, 1, (700, 700), dropout=0.2), "epochs": 1},
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


@pytest.mark.parametrize("cluster", [(SPREAD, OBJECTS)], ids=["objects"], indirect=True)
@pytest.mark.parametrize("job", ["adamw, clipped", "wide"])
def test_and_over_object_references(cluster: Cluster, make_plan: MakePlan, job: str) -> None:
    plan = make_plan(shards=6, **JOBS[job])
    wanted, points = in_process(plan)
    for workers in (2, 5):
        watch = Watch(cluster.start(replace(plan, job_id=f"job_{workers}"), 1, workers))
        assert watch.result().weights_sha256 == wanted.weights_sha256
        assert watch.points == points
        cluster.release(watch.handle)


def on_home(nodes: RayNodes, make_plan: MakePlan, **changes: Any) -> TrainingPlan:
    """A plan whose arrays lie in the home of the head, and of no other node."""
    return make_plan(data={"cache_folder": str(nodes.nodes[0].home / "prepared"), **changes.pop("data", {})}, **changes)


def test_arrays_reach_each_node_once(cluster: Cluster, nodes: RayNodes, make_plan: MakePlan) -> None:
    plan = on_home(nodes, make_plan, shards=8, data={"split_seed": next(SEEDS)})
    wanted, _ = in_process(plan)
    before = fetched(nodes)
    watch = Watch(cluster.start(plan, 1, 8))
    assert watch.result().weights_sha256 == wanted.weights_sha256
    assert [len(after - old) for after, old in zip(fetched(nodes), before, strict=True)] == [0, 1, 1, 1]
    cluster.release(watch.handle)


def fetched(nodes: RayNodes) -> list[set[str]]:
    """The entries in each node's cache."""
    return [{path.name for path in (node.home / "fetched").glob("?" * 64)} for node in nodes.nodes]


def test_no_call_of_ray_happens_inside_a_step(cluster: Cluster, nodes: RayNodes, make_plan: MakePlan) -> None:
    """On the trainer's node none at all. Between nodes a call of each process for a stretch of steps, and no other."""
    plan = on_home(nodes, make_plan, **LONG | {"epochs": 10_000})
    watch = Watch(cluster.start(plan, 1, 2))
    watch.until(lambda report: report.progress.step > 50)
    crew = watch.handle.crew
    at = watch.until(lambda _: True).progress.step
    first, *others = calls_of(crew.all)
    counted = watch.until(lambda _: True).progress.step
    watch.until(lambda report: report.progress.step > counted + 500)
    last, *others_last = calls_of(crew.all)
    until = watch.until(lambda _: True).progress.step
    assert others_last == others
    if crew.placement == PACK:
        assert last == first
    else:
        stretches = (last["serve"] - first["serve"]) / (len(crew.all) - 1)
        assert 0 < stretches < (until - at) / 5
        called = {name for name, times in last.items() if times != first.get(name)}  # the process had jobs before
        assert not {"gradients", "reduce_parts", "commit_parts"} & called
    watch.handle.cancel()
    watch.until(lambda report: report.outcome == "cancelled")
    cluster.release(watch.handle)


def test_a_killed_worker_is_replaced_wherever_there_is_room(
    cluster: Cluster, nodes: RayNodes, make_plan: MakePlan
) -> None:
    plan = on_home(nodes, make_plan, **LONG | {"epochs": 100}, shards=4)
    wanted, points = in_process(plan)
    watch = Watch(cluster.start(plan, 1, 3))
    killed = watch.handle.crew.workers[-1]
    pid = pids_of(watch.handle)[killed]
    watch.until(lambda report: report.progress.step > 20)
    os.kill(pid, signal.SIGKILL)
    result = watch.result()
    assert (result.weights_sha256, result.worker_failures) == (wanted.weights_sha256, 1)
    assert watch.points == points
    cluster.release(watch.handle)
    wait_for(lambda: cluster.capacity().free_worker_slots == sum(SLOTS))


WIDE = {"network": NetworkSpec(1, 1, (700, 700))}


def test_a_node_is_lost_with_an_aggregator_and_comes_back(
    cluster: Cluster, nodes: RayNodes, make_plan: MakePlan, tmp_path: Path
) -> None:
    """The attempt ends, for its blocks are gone; the next one goes on from the newest checkpoint, on other nodes."""
    plan = on_home(
        nodes,
        make_plan,
        **WIDE,
        batch_size=16,
        epochs=30,
        shards=6,
        checkpoint_folder=str(tmp_path / "checkpoints"),
        checkpoint_every_seconds=0.2,
    )
    wanted, points = in_process(plan)
    watch = Watch(cluster.start(plan, 1, 6))
    node = node_of(watch.handle.crew.aggregators[1])
    number = next(k for k in range(len(SLOTS)) if node_name(nodes, k) == node)
    watch.until(lambda report: report.progress.step > 30 and list((tmp_path / "checkpoints").glob("step-*")))
    pids = {name: pid for name, pid in pids_of(watch.handle).items() if node_of(name) == node}
    nodes.nodes[number].kill()
    with pytest.raises(TrainerLost):
        watch.result()
    cluster.kill(watch.handle)
    wait_for(lambda: gone(pids))
    wait_for(lambda: cluster.capacity().worker_slots == sum(SLOTS) - 2)
    again = Watch(cluster.start(plan, 2, 6))
    result = again.result()
    assert node not in {node_of(name) for name in again.handle.crew.all}
    assert result.weights_sha256 == wanted.weights_sha256
    (resumed,) = [event for event in again.events if event.type == "checkpoint" and "goes on" in event.message]
    assert resumed.data["step"] > 0
    assert sorted(set(watch.points) | set(again.points)) == sorted(points)
    cluster.release(again.handle)
    nodes.restart(nodes.nodes[number])
    wait_for(lambda: cluster.capacity().worker_slots == sum(SLOTS), 120)


def node_name(nodes: RayNodes, number: int) -> str:
    """As actors' names have it."""
    alive = (node for node in ray.nodes() if node["Alive"])
    return next(str(node["NodeID"])[:8] for node in alive if node["NodeManagerAddress"] == nodes.nodes[number].address)
