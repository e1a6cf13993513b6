"""A service's training over three hosts on a network that is slow, late and lossy, beside what the model says of it.

Usage: python -m benchmarks hosts     (as root: each host is a network namespace of this machine)

784-256-128-10, 64 rows a host, plain SGD, each step exchanged and every 16th. The model (node_model.py) knows nothing
of lost packets, and has every host compute for itself, while these share the machine's cores.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.cables import Cable
from benchmarks.contenders import Case
from benchmarks.hosts import Hosts, why_none
from benchmarks.node_model import MODES, Parts, examples_per_second, measured_links
from benchmarks.nodes import LAYOUT, SUM_BYTES_S
from benchmarks.race import Options, race
from benchmarks.ray_nodes import RayNodes
from benchmarks.rows import Row
from examples.mnist_csv import write_csv
from service.client import FallLine
from service.embedded import new_token, own_environment, ray_environment
from service.local_service import LocalService

SLOTS = (2, 2, 2)
CABLE = Cable(bytes_s=200e6 / 8, delay_s=0.002, loss=0.001)
SIZES, ROWS_A_HOST = (784, 256, 128, 10), 64
BATCH = ROWS_A_HOST * len(SLOTS)
TABLE_ROWS = 4 * 16 * BATCH  # whole steps and whole rounds an epoch
MEASURED_S, PATIENCE_S = 20.0, 240.0
LEAST = 0.5  # of what the model says


def run(_results: Path, options: Options) -> list[Row]:
    """The rows; `peer` is the model."""
    case = f"{len(SLOTS)} hosts, {CABLE.bytes_s * 8 / 1e6:g} Mbit/s, {CABLE.delay_s * 1e3:g} ms, {CABLE.loss:.1%} lost"
    if (why := why_none()) is not None:
        return [Row("over hosts", f"{case} ({why})", 0.0, None, "examples/s", None, LEAST)]
    (alone,) = race([("ours", Case(SIZES, ROWS_A_HOST))], options)
    parts = Parts(
        ROWS_A_HOST / alone.rate,
        ROWS_A_HOST,
        *measured_links(LAYOUT.size),
        SUM_BYTES_S,
        LAYOUT.size,
        len(LAYOUT.blocks),
        CABLE.bytes_s,
        CABLE.delay_s,
    )
    print(parts, flush=True)
    with _cluster() as (client, hosts):
        rates = {name: _rate(client, MODES[name].get("local_steps", 1)) for name in ("sync", "local, 16 steps")}
        print(f"packets: {hosts.counts()}", flush=True)
    rows = []
    for name, rate in rates.items():
        predicted = examples_per_second(parts, len(SLOTS), name)
        rows.append(Row("over hosts", f"{name}, {case}", rate, predicted, "examples/s", rate / predicted, LEAST))
    return rows


@contextmanager
def _cluster() -> Iterator[tuple[FallLine, Hosts]]:
    """A service on the first of the hosts, with all their worker slots and a table."""
    token = new_token()
    ours = {name: value for name, value in ray_environment({}, token).items() if name.startswith("RAY_")}
    os.environ |= ours  # the service takes them over
    with (
        tempfile.TemporaryDirectory(prefix="fallline-hosts-") as folder,
        Hosts(len(SLOTS), CABLE) as hosts,
        hosts.hosts[0].entered(),
        RayNodes(SLOTS, own_environment(), token, Path(folder), hosts.hosts) as nodes,
    ):
        environ = {"FALLLINE_RAY_ADDRESS": nodes.address, "FALLLINE_PLACEMENT": "spread"}
        with LocalService(nodes.nodes[0].home, environ) as service, FallLine(service.url) as client:
            service.wait_until_ready()
            draw = np.random.default_rng(0)
            images = draw.integers(0, 256, (TABLE_ROWS, SIZES[0]), np.uint8)
            write_csv(images, draw.integers(0, SIZES[-1], TABLE_ROWS), table := Path(folder) / "table.csv")
            client.datasets.upload(table, name="table")
            yield client, hosts


def _rate(client: FallLine, local_steps: int) -> float:
    """Examples a second of a job that is left to train for a while, exchanging after so many steps."""
    hosts = {"workers": len(SLOTS), "shards": len(SLOTS)}
    mode = {"mode": "local", "local_steps": local_steps} if local_steps > 1 else {"mode": "sync"}
    job_id = client.jobs.submit(
        {
            "dataset": "table",
            "target": "label",
            "features": [f"pixel{k}" for k in range(SIZES[0])],
            "split": {"validation": 0.0},  # which the model knows nothing of
            "preprocessing": {"numeric": "none"},
            "network": {"hidden": list(SIZES[1:-1])},
            "optimizer": {"name": "sgd", "learning_rate": 0.01, "clip_norm": None},
            "training": {"epochs": 100_000, "batch_size": BATCH, "early_stopping": None, "log_every_steps": 1000},
            "distribution": hosts | mode,
            "model": None,
        }
    )["id"]
    began, first = _at(client, job_id, 10, 0.0)
    ended, last = _at(client, job_id, first + 1, began + MEASURED_S)
    client.jobs.cancel(job_id)
    client.jobs.wait(job_id)
    return (last - first) * local_steps * BATCH / (ended - began)


def _at(client: FallLine, job_id: str, step: int, when: float) -> tuple[float, int]:
    """When the job was first told to be at `step` or later, at `when` or later, and which step it was."""
    told, until = 0, time.monotonic() + PATIENCE_S
    while told < step or time.monotonic() < when:
        job = client.jobs.show(job_id)
        if job["status"] not in ("queued", "running") or time.monotonic() > until:
            raise RuntimeError(f"the job does not train: {job}")
        before, told = told, int(job["progress"]["step"] if job["progress"] else 0)
        if told == before:
            time.sleep(0.05)
    return time.monotonic(), told
