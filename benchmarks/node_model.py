"""What a step costs on more nodes than are at hand: a model of measured parts, and its picture.

One worker, one shard and one aggregator a node, as far as there are blocks. A step is a chain: gradients, their way to
the aggregators, sums, square sums told to all, the parameters' way back. Links work at once; the fullest one counts.
The trainer chains calls ahead, so its own time a call adds to no step, but bounds how often there can be one.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from worker.object_exchange import SHARE_BYTES

NODES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
MODES = {"sync": {}, "half precision": {"number_bytes": 2}, "local, 16 steps": {"local_steps": 16}}


@dataclass(frozen=True)
class Parts:
    """`gradient_s`: of a worker's `rows`. `call_s`: the trainer's, a call. `hop_s`, `object_s`: from a result on one
    node to the start of the call on another that waits for it, a small one and one of a vector's size, the link apart.
    `sum_bytes_s`: memory read while adding up."""

    gradient_s: float
    rows: int
    call_s: float
    hop_s: float
    object_s: float
    sum_bytes_s: float
    parameters: int
    blocks: int
    link_bytes_s: float
    latency_s: float


def step_s(parts: Parts, nodes: int, number_bytes: int = 4, local_steps: int = 1) -> float:
    """Seconds of a step, or of a round of local steps, on so many nodes."""
    work = local_steps * parts.gradient_s
    if nodes == 1:
        return work
    whole = parts.parameters * number_bytes
    aggregators = min(nodes, parts.blocks, math.ceil(nodes * whole / SHARE_BYTES))
    share = whole / aggregators
    # The node of an aggregator takes all other nodes' pieces of its share, and the other shares' parameters.
    wire = (share * (nodes - 1) + whole - share) / parts.link_bytes_s
    chain = 2 * (parts.object_s + parts.latency_s) + (aggregators > 1) * (parts.hop_s + parts.latency_s)
    sums = nodes * share / parts.sum_bytes_s
    return max(work + chain + wire + sums, (nodes + 2 * aggregators) * parts.call_s)


def examples_per_second(parts: Parts, nodes: int, mode: str) -> float:
    """Of all nodes together."""
    how = MODES[mode]
    return nodes * parts.rows * how.get("local_steps", 1) / step_s(parts, nodes, **how)


def measured_calls(address: str, parameters: int, count: int = 300) -> tuple[float, float, float]:
    """`call_s`, `hop_s` and `object_s`, between actors on different nodes of the cluster at `address`."""
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="error")
    try:
        actor = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(_Echo)
        actors = [actor.remote() for _ in range(2)]
        ray.get([each.echo.remote(0) for each in actors])
        began = time.perf_counter()
        ray.get([actors[k % 2].echo.remote(k) for k in range(count)])
        call_s = (time.perf_counter() - began) / count
        hops = []
        for value in (np.zeros(1, np.float32), np.zeros(parameters, np.float32)):
            began = time.perf_counter()
            passed: Any = value
            for k in range(count):
                passed = actors[k % 2].echo.remote(passed)
            ray.get(passed)
            hops.append((time.perf_counter() - began) / count)
        return call_s, *hops
    finally:
        ray.shutdown()


class _Echo:
    def echo(self, value: Any) -> Any:
        return value + 1 if isinstance(value, np.ndarray) else value  # another array: not the one that came


def draw(plot: Path, parts: Parts, links: Sequence[float]) -> None:
    """Examples a second over nodes, for each mode and each link speed in bits a second, into the file `plot`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(links), figsize=(4.2 * len(links), 3.6), sharey=True)
    for axis, bits in zip(axes, links, strict=True):
        linked = replace(parts, link_bytes_s=bits / 8)
        for mode in MODES:
            axis.loglog(NODES, [examples_per_second(linked, nodes, mode) for nodes in NODES], label=mode)
        axis.loglog(NODES, [nodes * parts.rows / parts.gradient_s for nodes in NODES], "k:", label="no exchange")
        axis.set(title=f"{bits / 1e9:g} Gbit/s", xlabel="nodes")
    axes[0].set_ylabel("examples/s")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(plot, dpi=110)
    pyplot.close(figure)
