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
LOST, LOST_S = 1, 20.0  # which host, for how long
UNDER_WAY_S = 2.0  # what was committed when a host was lost is told by then
# A host that is silent is dead to Ray after about 10 s, and ends when it is healed; or lives on to Ray, as it would by
# Ray's own figures, which come to more than a minute.
NOTICED, UNNOTICED = ({"RAY_health_check_timeout_ms": ms} for ms in ("2000", "30000"))
SPECS: dict[str, tuple[int, Job, Job]] = {  # epochs of 10 steps, distribution, optimizer
    "sync": (30, {}, {}),
    "local": (120, {"mode": "local", "local_steps": 5}, {}),
    "blocks on one host": (12, {}, {"max_norm": 3.0}),  # the first; else each host has some
}


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """This process is on the first of them meanwhile."""
    with Hosts(len(SLOTS), CABLE) as found, found.hosts[0].entered():
        yield found


@pytest.fixture(scope="module")
def nodes(request: pytest.FixtureRequest, hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    folder = tmp_path_factory.mktemp("nodes")
    with RayNodes(SLOTS, own_environment(), os.environ[TOKEN], folder, hosts.hosts, **request.param) as found:
        yield found


@pytest.fixture(scope="module")
def running(nodes: RayNodes, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with service_on(nodes, sum(SLOTS), table, tmp_path_factory.mktemp("secret")) as watched:
        yield watched


@pytest.fixture(scope="module")
def spec(request: pytest.FixtureRequest) -> Job:
    """Some 30 s of training. `request.param`: what SPECS says besides."""
    epochs, distribution, optimizer = SPECS[request.param]
    return {
        "dataset": "points",
        "target": "kind",
        "network": {"hidden": [600, 600], "dropout": 0.1},
        "optimizer": optimizer,
        "training": {"epochs": epochs, "batch_size": 96, "early_stopping": None, "checkpoint_every_seconds": 1},
        "distribution": {"workers": 3, "shards": 3, **distribution},
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


Fault = Callable[[Hosts, RayNodes], None]


def cut_off(hosts: Hosts, nodes: RayNodes) -> None:
    """Nothing comes from the host any more, or gets to it."""
    hosts.cut(hosts.hosts[LOST])


def power_off(hosts: Hosts, nodes: RayNodes) -> None:
    """All processes of the host are killed, and nobody hears of it."""
    cut_off(hosts, nodes)
    nodes.nodes[LOST].process.kill()
    nodes.nodes[LOST].process.wait(20)


@pytest.mark.parametrize("fault", [cut_off, pytest.param(power_off, marks=THOROUGH)])
@pytest.mark.parametrize(
    ("nodes", "spec"),
    [
        pytest.param(NOTICED, "sync", id="sync"),
        pytest.param(NOTICED, "local", id="local", marks=THOROUGH),
        pytest.param(NOTICED, "blocks on one host", id="without blocks", marks=THOROUGH),
        pytest.param(UNNOTICED, "sync", id="sync, unnoticed by Ray", marks=THOROUGH),
        pytest.param(UNNOTICED, "blocks on one host", id="without blocks, unnoticed by Ray", marks=THOROUGH),
    ],
    indirect=True,
    scope="module",
)
def test_a_host_is_lost_for_20_s_and_comes_back(
    running: Watched, hosts: Hosts, nodes: RayNodes, spec: Job, undisturbed: JobPicture, fault: Fault
) -> None:
    job_id = running.submit(spec)
    running.job(job_id, lambda job: running.step(job) > 10, PATIENCE_S)
    fault(hosts, nodes)
    began, load, step, went_on = time.monotonic(), os.getloadavg()[0], 0, 0.0

    def is_over(job: Job) -> bool:
        """The host is back, and the job has ended; meanwhile it is found out when it went on."""
        nonlocal step, went_on
        seconds = time.monotonic() - began
        if seconds < UNDER_WAY_S:
            step = running.step(job)
        elif not went_on and running.step(job) > step:
            went_on = seconds
        if seconds < LOST_S:
            return False
        hosts.heal(hosts.hosts[LOST])
        nodes.restart_ended()
        return running.ended(job)

    running.job(job_id, is_over, PATIENCE_S)
    told = [*running.messages(job_id, "fault"), *[f"resumed at step {at}" for at in running.resumed_at(job_id)]]
    log.info("in step %d: a later step after %.1f s, load %.1f; told: %s", step, went_on, load, told)
    running.succeeded(job_id, undisturbed)
    is_worked_on(running, nodes, spec)


def is_worked_on(running: Watched, nodes: RayNodes, spec: Job) -> None:
    """Returns when jobs have workers on the lost host again."""
    until = time.monotonic() + PATIENCE_S
    while str(nodes.nodes[LOST].home) not in homes(running):
        assert time.monotonic() < until, "no worker comes to the host"
        nodes.restart_ended()
        short = running.submit(spec | {"training": {**spec["training"], "epochs": 1}})
        running.job(short, running.ended, PATIENCE_S)
