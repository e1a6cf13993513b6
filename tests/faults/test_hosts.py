"""A service on three hosts with a network between them that is slow, late and lossy: hosts are cut off and killed.

Each host is a network namespace (benchmarks.hosts), and nobody is told that it is cut off: no connection ends. Judged
by the invariants alone, never by time.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.cables import Cable
from benchmarks.hosts import Hosts, why_none
from benchmarks.ray_nodes import RayNodes
from service.embedded import own_environment

from .clusters import TOKEN, homes, in_one_process, service_on
from .conftest import THOROUGH, Job, Watched
from .kills import PATIENCE_S
from .picture import JobPicture

pytestmark = [pytest.mark.system, pytest.mark.skipif((why := why_none()) is not None, reason=str(why))]
log = logging.getLogger(__name__)

SLOTS = (2, 2, 2)
CABLE = Cable(bytes_s=200e6 / 8, delay_s=0.002, loss=0.001)
CUT_OFF_S = 20.0
UNDER_WAY_S = 2.0  # what was committed when a host was lost is told by then
# Noticed by Ray within about 10 s, so that it holds the host for dead when it is healed.
HEALTH_CHECKS = {"RAY_health_check_timeout_ms": "2000"}
MODES = {"sync": {"mode": "sync"}, "local": {"mode": "local", "local_steps": 5}}


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """This process is on the first of them meanwhile."""
    with Hosts(len(SLOTS), CABLE) as found, found.hosts[0].entered():
        yield found


@pytest.fixture(scope="module")
def nodes(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    folder = tmp_path_factory.mktemp("nodes")
    with RayNodes(SLOTS, own_environment(), os.environ[TOKEN], folder, hosts.hosts, **HEALTH_CHECKS) as found:
        yield found


@pytest.fixture(scope="module")
def running(nodes: RayNodes, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with service_on(nodes, sum(SLOTS), table, tmp_path_factory.mktemp("secret")) as watched:
        yield watched


@pytest.fixture(scope="module", params=["sync", pytest.param("local", marks=THOROUGH)])
def spec(request: pytest.FixtureRequest) -> Job:
    """4.4 MB of gradients an exchange, so that two hosts have parameter blocks, and the third has none."""
    epochs = {"sync": 10, "local": 50}[request.param]  # of 10 exchanges, and of 2
    return {
        "dataset": "points",
        "target": "kind",
        "network": {"hidden": [600, 600], "dropout": 0.1},
        "training": {"epochs": epochs, "batch_size": 96, "early_stopping": None, "checkpoint_every_seconds": 1},
        "distribution": {"workers": 3, "shards": 3, **MODES[request.param]},
    }


@pytest.fixture(scope="module")
def undisturbed(running: Watched, hosts: Hosts, spec: Job) -> JobPicture:
    """What every job of `spec` must come to; on three hosts it comes to what one process does."""
    job_id = running.submit(spec)
    running.job(job_id, lambda job: running.step(job) > 0, PATIENCE_S)
    assert len(homes(running)) == len(SLOTS)
    running.job(job_id, running.ended, PATIENCE_S)
    found: JobPicture = running.check(job_id).jobs[job_id]
    assert found.job["status"] == "succeeded", found.job["error"]
    assert running.faults(job_id) == []
    assert hosts.counts()["lost"] > 0
    assert found.job["result"]["weights_sha256"] == in_one_process(running, job_id)
    return found


def cut_off(hosts: Hosts, nodes: RayNodes, number: int) -> Callable[[], None]:
    """Nothing comes from the host any more; what ends that."""
    hosts.cut(hosts.hosts[number])
    return lambda: hosts.heal(hosts.hosts[number])


def power_off(hosts: Hosts, nodes: RayNodes, number: int) -> Callable[[], None]:
    """All processes of the host are killed, and no other one is told so; what starts it again."""
    hosts.cut(hosts.hosts[number])
    nodes.nodes[number].process.kill()
    nodes.nodes[number].process.wait(20)

    def back() -> None:
        hosts.heal(hosts.hosts[number])
        nodes.restart(nodes.nodes[number])

    return back


@pytest.mark.parametrize(
    ("fault", "number"),
    [
        (cut_off, 1),
        pytest.param(cut_off, 2, marks=THOROUGH),
        *[pytest.param(power_off, n, marks=THOROUGH) for n in (1, 2)],
    ],
)
def test_a_host_is_lost_for_20_s_and_comes_back(
    running: Watched,
    hosts: Hosts,
    nodes: RayNodes,
    spec: Job,
    undisturbed: JobPicture,
    fault: Callable[[Hosts, RayNodes, int], Callable[[], None]],
    number: int,
) -> None:
    job_id = running.submit(spec)
    running.job(job_id, lambda job: running.step(job) > 10, PATIENCE_S)
    back, began, step = fault(hosts, nodes, number), time.monotonic(), 0
    went_on: float | None = None
    is_back = False

    def has_ended(job: Job) -> bool:
        nonlocal is_back, step, went_on
        seconds = time.monotonic() - began
        if seconds < UNDER_WAY_S:
            step = running.step(job)
        elif went_on is None and running.step(job) > step:
            went_on = seconds
        if not is_back and seconds > CUT_OFF_S:
            back()
            is_back = True
        if is_back:
            nodes.restart_ended()
        return is_back and running.ended(job)

    try:
        running.job(job_id, has_ended, PATIENCE_S)
    finally:
        for event in running.events(job_id):
            if event["type"] != "metric" and not event["message"].startswith("checkpoint of"):
                log.info(
                    "%.1f %s %s",
                    event["created_at"] - time.time() + time.monotonic() - began,
                    event["type"],
                    event["message"],
                )
    log.info("host %d, %s: work goes on after %s s, load %.1f", number, fault.__name__, went_on, os.getloadavg()[0])
    running.succeeded(job_id, undisturbed)
    lost = str(nodes.nodes[number].home)

    def is_used_again() -> bool:
        nodes.restart_ended()
        return lost in homes(running)

    running.wait_for(is_used_again, PATIENCE_S, "workers wait on the host again")
