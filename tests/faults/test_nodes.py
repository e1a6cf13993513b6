"""A service on a cluster that somebody else has started, with a token: its nodes are killed, and no bit differs.

Judged by the invariants alone, never by time. `make faults` makes 50 kills over at least 10 jobs, `make test` some over
one. Jobs have all slots, so that whoever is killed is at work, and a kill counts when its job has told of a loss.
"""

import logging
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ray_nodes import RayNode, RayNodes
from service.embedded import own_environment

from .clusters import TOKEN, homes, in_one_process, service_on, workers
from .conftest import THOROUGH, Watched
from .kills import PATIENCE_S, summary
from .picture import JobPicture, Json

pytestmark = pytest.mark.system
log = logging.getLogger(__name__)

SLOTS = (2, 2, 2, 2)
SEED = int(os.environ.get("FALLLINE_FAULTS_SEED", "0"))
ALL, QUICK = (50, 10, 200), (4, 1, 200)  # kills, jobs at least, epochs of 10 steps
MOST_JOBS = 20  # times as many jobs as planned, where they are over before all kills are made
DELAY_S = 4.0  # a kill comes at a moment drawn evenly from so long after the last one was got over


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    folder = tmp_path_factory.mktemp("nodes")
    with RayNodes(SLOTS, own_environment(), os.environ[TOKEN], folder) as found:
        yield found


@pytest.fixture(scope="module")
def running(nodes: RayNodes, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with service_on(nodes, sum(SLOTS), table, tmp_path_factory.mktemp("secret")) as watched:
        yield watched


@pytest.fixture(scope="module")
def spec(all_faults: bool) -> dict[str, Any]:
    """6 blocks, so that each node that has workers when a job starts has an aggregator, too."""
    return {
        "dataset": "points",
        "target": "kind",
        "network": {"hidden": [600, 600], "dropout": 0.1},
        "training": {
            "epochs": (ALL if all_faults else QUICK)[2],
            "batch_size": 96,
            "early_stopping": None,
            "checkpoint_every_seconds": 1,
        },
        "distribution": {"workers": sum(SLOTS), "shards": sum(SLOTS)},
    }


@pytest.fixture(scope="module")
def undisturbed(running: Watched, spec: dict[str, Any]) -> JobPicture:
    """What every job of `spec` must come to; on four nodes it comes to what one process does."""
    job_id = running.submit(spec)
    running.wait_for(lambda: len(homes(running)) == len(SLOTS), PATIENCE_S, "workers on all nodes")
    running.job(job_id, running.ended, PATIENCE_S)
    found: JobPicture = running.check(job_id).jobs[job_id]
    assert found.job["status"] == "succeeded", found.job["error"]
    assert found.job["result"]["weights_sha256"] == in_one_process(running, job_id)
    return found


def kill_one(running: Watched, nodes: RayNodes, draw: random.Random) -> RayNode | None:
    """A worker's process, or a node but the head, which is returned."""
    if draw.random() < 0.5:
        with suppress(ProcessLookupError):
            os.kill(draw.choice(workers(running)), signal.SIGKILL)
        return None
    node = draw.choice(nodes.nodes[1:])
    node.kill()
    return node


def wait_until_at_work(running: Watched, job_id: str) -> None:
    """Returns when all workers that the job wants make steps, or it has ended.

    Seen by three further steps: the API tells of one more, at most, once nobody is at work any more.
    """
    seen = set[int]()

    def is_at_work(job: Json) -> bool:
        progress = job["progress"] or {}
        if progress.get("workers") == job["spec"]["distribution"]["workers"]:
            seen.add(running.step(job))
        else:
            seen.clear()
        return len(seen) > 3 or running.ended(job)

    running.job(job_id, is_at_work, PATIENCE_S)


def one_loss(running: Watched, nodes: RayNodes, job_id: str, draw: random.Random) -> tuple[str, int, float] | None:
    """Kill one of the job's; what it was, in which step, and the seconds until a further one was told. None: the job
    has ended without a word of it."""
    wait_until_at_work(running, job_id)
    time.sleep(draw.uniform(0, DELAY_S))  # the experiment itself: any moment will do
    job, told = running.client.jobs.show(job_id), len(running.faults(job_id))
    if running.ended(job):
        return None
    step, began = running.step(job), time.monotonic()
    node = kill_one(running, nodes, draw)
    running.job(job_id, lambda job: len(running.faults(job_id)) > told or running.ended(job), PATIENCE_S)
    is_told = len(running.faults(job_id)) > told
    running.job(job_id, lambda job: running.step(job) > step or running.ended(job), PATIENCE_S)
    took = time.monotonic() - began
    if node is not None:
        nodes.restart(node)
    return ("worker" if node is None else "node", step, took) if is_told else None


def test_killed_nodes_and_workers_cost_no_bit_and_no_step(
    running: Watched, nodes: RayNodes, spec: dict[str, Any], undisturbed: JobPicture, all_faults: bool
) -> None:
    kills, least_jobs, _ = ALL if all_faults else QUICK
    seconds: dict[str, list[float]] = {"node": [], "worker": []}
    seeds, made = iter(range(SEED, SEED + MOST_JOBS * least_jobs)), 0
    while made < kills:
        seed = next(seeds)
        draw, job_id, of_job = random.Random(seed), running.submit(spec), 0
        while of_job < kills // least_jobs and (found := one_loss(running, nodes, job_id, draw)) is not None:
            of_job += 1
            what, step, took = found
            seconds[what].append(took)
            log.info("seed %d, kill %d: a %s in step %d, %.1f s", seed, of_job, what, step, took)
        running.succeeded(job_id, undisturbed)
        made += of_job
    assert seed - SEED + 1 >= least_jobs
    log.info("%d kills over %d jobs; load %.1f", made, seed - SEED + 1, os.getloadavg()[0])
    for what, found_s in seconds.items():
        log.info("%s", summary(f"a killed {what}: the next step", found_s))


@THOROUGH
def test_the_head_is_killed_and_started_again(
    running: Watched, nodes: RayNodes, spec: dict[str, Any], undisturbed: JobPicture
) -> None:
    """With it go the job's trainer and all that Ray knows: no node of before belongs to the new head's cluster."""
    job_id = running.submit(spec)
    running.job(job_id, lambda job: running.step(job) > 20, PATIENCE_S)
    running.wait_for(lambda: running.client.jobs.checkpoints(job_id)["data"], PATIENCE_S, "a checkpoint")
    head = nodes.nodes[0]
    with running.work_goes_on(job_id, "the head is killed and started again"):
        head.process.kill()
        head.process.wait(PATIENCE_S)
        running.wait_for(lambda: "ray" in running.client.health().get("missing", ()), PATIENCE_S, "/readyz names Ray")
        nodes.restart(head)
        until = time.monotonic() + PATIENCE_S
        while not running.resumed_at(job_id):
            assert time.monotonic() < until, "the job does not go on"
            nodes.restart_ended()
            time.sleep(0.1)  # polls a condition
    assert any("trainer" in message for message in running.messages(job_id, "fault"))
    running.succeeded(job_id, undisturbed)
