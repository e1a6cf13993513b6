"""The exchange in shared memory by itself: gradients that cost nothing, beside copying the same bytes.

Usage: python -m benchmarks exchange

784-256-128-10 in float32, plain SGD, two workers with one shard and one BLAS thread each. A worker's gradient is a
vector that it has ready and writes into its slot, so that the slot lies in its own core's cache, as after a backward
pass. The exchange is what follows: from the moment at which both slots are written until both workers begin the next
step with the new parameters. That is two barriers, the sum over the slots with its square sum, the norm, and the update
out of place.

Of all this no exchange can do without the two gradients, which somebody has to read, and the new parameters, which
somebody has to write: three vectors of 0.94 MB. Beside it, two processes copy just these, side by side: each its blocks
of both slots, written a moment before as above, to memory of its own, and its blocks of the committed parameters to the
other buffer. Their time is the slower one's, without any barrier.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.distribution import WORKERS, mnist_like, step_plan
from benchmarks.processes import Processes
from benchmarks.race import Options
from benchmarks.rows import Row
from core.network import network_graph, parameter_layout
from worker.crew import Crew
from worker.gradient_worker import GradientWorker
from worker.plan import Attached, ShardReport, StepPlan
from worker.segment import Segment, SegmentLayout
from worker.shared_memory import SharedMemoryExchange, segment_layout

Array = NDArray[Any]
STEPS, BATCH, TARGET = 1000, 128, 2.0


def ready_gradient(size: int, number: int) -> Array:
    """(size,), so small that the parameters stay what they are like."""
    found: Array = (1e-9 * np.random.default_rng(number).normal(size=size)).astype(np.float32)
    return found


class Ready(GradientWorker):
    """Its gradients cost nothing but being written; it keeps when it began each, and when that was done."""

    def attach(self, plan: StepPlan) -> Attached:
        found = super().attach(plan)
        self._ready, self._times = ready_gradient(self._network.layout.size, 0), list[tuple[float, float]]()
        return found

    def gradient(self, step: int, shard: int, parameters: Array, gradient: Array) -> ShardReport:
        began = time.perf_counter()
        gradient[...] = self._ready
        self._times.append((began, time.perf_counter()))
        return ShardReport(step, shard, BATCH // WORKERS, BATCH / WORKERS, 0.0)

    def times(self) -> list[tuple[float, float]]:
        """Of all steps since the last call."""
        found, self._times = self._times, []
        return found


class Exchanging:
    """The service's own exchange, over two such workers."""

    def __init__(self, plan: StepPlan) -> None:
        self._transport = Processes(Ready)
        self._workers = [self._transport.recruit() for _ in range(WORKERS)]
        crew = Crew(plan, self._workers, self._transport, lambda _: None)
        crew.admit(wait=True)
        self._exchange = SharedMemoryExchange(plan, 0, crew, self._transport)

    def run(self) -> float:
        """The median of the seconds that an exchange took."""
        self._exchange.run_steps(STEPS)
        times = np.array(self._transport.get([worker.call_beside("times") for worker in self._workers]))
        began, written = times.max(axis=0).T  # the later of the two
        return float(np.median(began[1:] - written[:-1]))

    def close(self) -> None:
        self._exchange.close()
        self._transport.close()


class Copier:
    """One of two processes that copy."""

    def begin(self, layout: SegmentLayout, path: str, number: int, blocks: list[slice]) -> None:
        self._segment, self._number, self._blocks, self._turn = Segment.open(layout, path), number, blocks, 0
        self._ready = ready_gradient(layout.parameters, number)
        self._own = [np.zeros_like(self._ready) for _ in range(WORKERS)]

    def copy(self) -> list[float]:
        """The seconds of each of STEPS copies."""
        segment, found = self._segment, []
        for _ in range(STEPS):
            segment.slots[self._number] = self._ready
            self._meet()
            pairs = [(segment.buffers[0, 0], segment.buffers[1, 0]), *zip(segment.slots, self._own, strict=True)]
            began = time.perf_counter()
            for source, target in pairs:
                for block in self._blocks:
                    target[block] = source[block]
            found.append(time.perf_counter() - began)
            self._meet()  # nobody writes a slot that is being read
        return found

    def _meet(self) -> None:
        segment, self._turn = self._segment, self._turn + 1
        segment.words.publish(segment.arrived(self._number), self._turn)
        for other in range(WORKERS):
            segment.words.wait(segment.arrived(other), self._turn, spin=True, look=lambda: None)


class Copying:
    """Two of them, over a segment as the exchange has it."""

    def __init__(self, plan: StepPlan) -> None:
        self._transport, layout = Processes(Copier), segment_layout(plan, WORKERS)
        self._segment = Segment.create(layout)
        self._workers = [self._transport.recruit() for _ in range(WORKERS)]
        blocks = parameter_layout(network_graph(plan.network)).blocks
        self._transport.get(
            [
                worker.call("begin", layout, self._segment.path, number, list(blocks[number::WORKERS]))
                for number, worker in enumerate(self._workers)
            ]
        )

    def run(self) -> float:
        """The median of the seconds that a copy took."""
        times = np.array(self._transport.get([worker.call("copy") for worker in self._workers]))
        return float(np.median(times.max(axis=0)))

    def close(self) -> None:
        self._transport.close()
        os.close(self._segment.descriptor)


def run(_results: Path, options: Options) -> list[Row]:
    """The one row; the two take turns, forwards and backwards."""
    with tempfile.TemporaryDirectory() as folder:
        plan = step_plan(mnist_like(Path(folder)), BATCH, WORKERS)
        contenders: list[Exchanging | Copying] = [Exchanging(plan), Copying(plan)]
        try:
            for contender in contenders:
                contender.run()  # warm
            turns: list[list[float]] = [[], []]
            for number in range(options.rounds):
                for place in (0, 1) if number % 2 == 0 else (1, 0):
                    turns[place].append(contenders[place].run())
        finally:
            for contender in contenders:
                contender.close()
    ours, copies = turns
    case = "the exchange alone, 2 workers, 0.94 MB, beside copying two gradients and the parameters"
    rounds = list(zip(ours, copies, strict=True))
    ratio = statistics.median(one / other for one, other in rounds)
    print("us by round: " + ", ".join(f"{1e6 * one:.0f} / {1e6 * other:.0f}" for one, other in rounds))
    one, other = (1e6 * statistics.median(each) for each in turns)
    return [Row("distribution", case, one, other, "us", ratio, TARGET, ceiling=True)]
