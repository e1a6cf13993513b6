"""What a step costs on more nodes than are at hand: a model of measured parts, and its picture.

One worker, one shard and one aggregator a node, as far as there are blocks. A step is a chain: gradients, their way to
the aggregators, sums, the parameters' way back; what the aggregators tell each other goes on beside that. Nodes and
links work at once; the fullest one counts. The trainer calls once for a stretch of steps, and bounds none.
"""

import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.processes import Processes
from worker.links import Inbox, Link, raw, tune

NODES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
PARAMETER_BYTES = 4
MODES = {"sync": {}, "half gradients": {"gradient_bytes": 2}, "local, 16 steps": {"local_steps": 16}}


@dataclass(frozen=True)
class Parts:
    """`gradient_s`: of a worker's `rows`. `hop_s`: from a process that sends something small until another one has it,
    the link's latency apart. `copy_bytes_s`: through the system's sockets, from buffer to buffer, the link apart.
    `sum_bytes_s`: memory read while adding up."""

    gradient_s: float
    rows: int
    hop_s: float
    copy_bytes_s: float
    sum_bytes_s: float
    parameters: int
    blocks: int
    link_bytes_s: float
    latency_s: float


def step_s(parts: Parts, nodes: int, gradient_bytes: int = PARAMETER_BYTES, local_steps: int = 1) -> float:
    """Seconds of a step, or of a round of local steps, on so many nodes."""
    work = local_steps * parts.gradient_s
    if nodes == 1:
        return work
    whole = parts.parameters * PARAMETER_BYTES
    aggregators = min(nodes, parts.blocks)
    share = whole / aggregators
    # The node of an aggregator takes all other nodes' pieces of its share, and sends its share to all of them.
    fullest = max(share * (nodes - 1), whole - share)
    wire = (1 + gradient_bytes / PARAMETER_BYTES) * fullest / min(parts.link_bytes_s, parts.copy_bytes_s)
    hops = 2  # gradients, parameters: what the aggregators tell each other goes on beside that
    sums = nodes * share / parts.sum_bytes_s
    return work + hops * (parts.hop_s + parts.latency_s) + wire + sums


def examples_per_second(parts: Parts, nodes: int, mode: str) -> float:
    """Of all nodes together."""
    how = MODES[mode]
    return nodes * parts.rows * how.get("local_steps", 1) / step_s(parts, nodes, **how)


def measured_links(parameters: int, count: int = 300) -> tuple[float, float]:
    """`hop_s` and `copy_bytes_s`, between two processes of this machine."""
    processes = Processes(_Echo)
    echo = processes.recruit()
    (port,) = processes.get([echo.call("listen")])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        tune(connection)
        link = Link(connection, "echo")
        inbox, seconds = Inbox([link]), []
        for size in (1, parameters):
            vector = np.zeros(size, np.float32)
            answer, turns = echo.call("serve", size, count), list[float]()
            for _ in range(count):
                began = time.perf_counter()
                link.send(raw(vector))
                link.due = vector.nbytes
                inbox.fill({link: iter([raw(vector)])})
                turns.append(time.perf_counter() - began)
            seconds.append(statistics.median(turns) / 2)
            processes.get([answer])
    processes.close()
    hop_s, vector_s = seconds
    return hop_s, 4 * parameters / (vector_s - hop_s)


class _Echo:
    def listen(self) -> int:
        self.listener = socket.create_server(("127.0.0.1", 0))
        return int(self.listener.getsockname()[1])

    def serve(self, size: int, count: int) -> None:
        if not hasattr(self, "link"):
            self.connection = self.listener.accept()[0]
            tune(self.connection)
            self.link = Link(self.connection, "who asks")
        vector, inbox = np.zeros(size, np.float32), Inbox([self.link])
        for _ in range(count):
            self.link.due = vector.nbytes
            inbox.fill({self.link: iter([raw(vector)])})
            self.link.send(raw(vector))


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
