"""The exchange over nodes: two workers on two nodes of a real Ray cluster, beside Ray Train and a parameter server.

Usage: python -m benchmarks nodes

784-256-128-10, batch 128, plain SGD. Both nodes are on this machine, each kept to a core of its own, which it shares
with its raylet: what is compared is what the exchange costs, not what a network does, nor where the system puts
processes. The bytes are those that go through the loopback device.
The model of many nodes (node_model.py) is drawn into nodes.png, beside a line with its measured parts.
"""

import math
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.contenders import Case
from benchmarks.distribution import WORKERS
from benchmarks.node_contenders import ADDRESS, NODE_CONTENDERS
from benchmarks.node_model import MODES, Parts, draw, examples_per_second, measured_links
from benchmarks.race import Options, Process, race
from benchmarks.ray_nodes import RayNodes
from benchmarks.rows import Row
from core.network import NetworkSpec, network_graph, parameter_layout
from service.embedded import new_token, own_environment, ray_environment

CASE = Case((784, 256, 128, 10), 128)
SLOTS = (4, 4)  # and as many CPUs: all contenders are there at once
TARGET, MOST_BYTES = 2.0, 1.1
LINKS, LATENCY_S = (1e9, 1e10, 1e11), 50e-6  # bits a second; of a switched network
SUM_BYTES_S = 5e9
LAYOUT = parameter_layout(network_graph(NetworkSpec(784, 10, (256, 128))))


def run(results: Path, options: Options) -> list[Row]:
    """Measure."""
    token = new_token()
    with tempfile.TemporaryDirectory(prefix="fallline-nodes-") as folder:
        with RayNodes(SLOTS, own_environment(), token, Path(folder), own_cores=True, RAY_worker_niceness="0") as nodes:
            ours_env = {name: value for name, value in ray_environment({}, token).items() if name.startswith("RAY_")}
            os.environ |= ours_env | {ADDRESS: nodes.address}
            found = {result.name: result for result in race([(name, CASE) for name in NODE_CONTENDERS], options)}
            bytes_a_step = _bytes_a_step(options)
    links = measured_links(LAYOUT.size)
    (alone,) = race([("ours", Case(CASE.sizes, CASE.batch // WORKERS))], options)
    if not alone.missing:
        _model(results, CASE.batch / WORKERS / alone.rate, *links)
    ours, *peers = found.values()
    rows = []
    for peer in peers:
        missing = ours.missing or peer.missing
        case = f"batch 128, 2 nodes{f' ({missing})' if missing else ''}"
        rate = 0.0 if ours.missing else ours.rate
        ratio = None if missing else ours.ratio(peer)
        rows.append(Row(peer.name, case, rate, None if missing else peer.rate, "examples/s", ratio, TARGET))
    least = lower_bound(len(SLOTS))
    ratio = bytes_a_step / least
    rows.append(Row("bytes a step", "2 nodes", bytes_a_step, least, "bytes", ratio, MOST_BYTES, ceiling=True))
    return rows


def _model(results: Path, gradient_s: float, hop_s: float, copy_bytes_s: float) -> None:
    """Draw it, and say what it predicts for the two nodes that were measured, whose link is this machine's memory."""
    rows, blocks = CASE.batch // WORKERS, len(LAYOUT.blocks)
    # The loopback's own time is in the parts already.
    parts = Parts(gradient_s, rows, hop_s, copy_bytes_s, SUM_BYTES_S, LAYOUT.size, blocks, math.inf, 0.0)
    results.mkdir(parents=True, exist_ok=True)
    draw(results / "nodes.png", replace(parts, latency_s=LATENCY_S), LINKS)
    predicted = examples_per_second(parts, len(SLOTS), "sync")
    print(f"a gradient {1e3 * gradient_s:.2f} ms, a hop {1e3 * hop_s:.3f} ms, {copy_bytes_s / 1e9:.2f} GB/s")
    for bits in LINKS:
        linked = replace(parts, latency_s=LATENCY_S, link_bytes_s=bits / 8)
        for mode in MODES:
            rates = ", ".join(f"{examples_per_second(linked, nodes, mode):,.0f}" for nodes in (10, 100, 1000))
            print(f"{bits / 1e9:g} Gbit/s, {mode}, 10, 100, 1,000 nodes: {rates} examples/s")
    print(f"the model says {predicted:,.0f} examples/s on {len(SLOTS)} nodes", flush=True)


def lower_bound(nodes: int) -> float:
    """Bytes between nodes a step: all gradients but those that are there already, the parameters to all other nodes."""
    size = LAYOUT.size * 4
    return WORKERS * size * (1 - 1 / nodes) + size * (nodes - 1)


def _bytes_a_step(options: Options) -> float:
    """What goes through the loopback device for a step of ours, all of Ray's own talk included."""
    with Process("ours over nodes", CASE, options) as process:
        before = _loopback_bytes()
        process.turn()
        steps = process.steps
        return (_loopback_bytes() - before) / steps


def _loopback_bytes() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "lo":
            return int(counts.split()[0])
    raise OSError("no loopback device")
