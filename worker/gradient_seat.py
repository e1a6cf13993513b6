"""A worker's side of the socket exchange: gradients out, parameters in, step after step without any call.

The worker's gradients and parameters lie in a memfd. An aggregator on the same machine maps it: it reads the gradient
where it was computed, and writes the parameters where they are needed, so that a link to it carries headers alone.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from core.network import network_graph, parameter_layout
from worker import memfd
from worker.errors import LinkBroken
from worker.greeting import WORKER, Caller, connect
from worker.links import Inbox, Link, Links, raw
from worker.plan import ShardReport, StepPlan
from worker.reduction import shares, span
from worker.wiring import GRADIENT, PARAMETERS, Stretch, Wiring

Array = NDArray[Any]


class Computes(Protocol):
    """What a seat's worker does: `worker.gradient_worker.GradientWorker`, attached."""

    def gradient(self, step: int, shard: int, parameters: Array, gradient: Array) -> ShardReport:
        """Overwrite `gradient` with the shard's of `step`."""

    def forget_vectors(self) -> None:
        """Refer to none of the vectors that `gradient` was given."""


class Memory:
    """What a worker shares with its machine's aggregators: a gradient for each of its shards, and the parameters."""

    def __init__(self, plan: StepPlan, shards: int, where: str | None = None) -> None:
        """`where`: that of another process (memfd.path); None: a new one. MemoryError; OSError, ValueError."""
        size, dtype = parameter_layout(network_graph(plan.network)).size, np.dtype(plan.network.dtype)
        whole = (shards + 1) * size * dtype.itemsize
        self.descriptor = -1
        if where is None:
            self.descriptor = memfd.create(whole, "what a worker shares with its machine")
            where = memfd.path(self.descriptor)
        try:
            rows = np.frombuffer(memfd.map_path(where, whole), dtype).reshape(shards + 1, size)
        except BaseException:
            self.close()
            raise
        self.gradients, self.parameters = list(rows[:-1]), rows[-1]

    def close(self) -> None:
        """Others cannot map it any more; who has mapped it keeps it."""
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1  # soon the number of another file
            os.close(descriptor)


class _Aggregator:
    """An aggregator as a worker sees it."""

    def __init__(self, link: Link, shares_memory: bool, memory: Memory, part: slice, in_half: bool) -> None:
        """`in_half`: gradients are such as float16 has, and are sent as such."""
        self.link, self.header = link, memoryview(bytearray(PARAMETERS.size))
        self._pieces = [] if shares_memory else [gradient[part] for gradient in memory.gradients]  # that are sent
        self._half = np.empty(part.stop - part.start, np.float16) if in_half else None
        self.parameters = [] if shares_memory else [raw(memory.parameters[part])]

    def piece(self, k: int) -> list[memoryview]:
        """What is sent of the worker's gradient `k`: until the next one is asked for."""
        if not self._pieces or self._half is None:
            return [raw(piece) for piece in self._pieces[k : k + 1]]
        self._half[...] = self._pieces[k]
        return [raw(self._half)]


class GradientSeat:
    """Held by an attached worker for as long as it is attached."""

    def __init__(self, worker: Computes, plan: StepPlan) -> None:
        self._worker, self._plan = worker, plan
        self._links = Links()
        self._memory: Memory | None = None
        self._aggregators: list[_Aggregator] = []

    def serve(self, wiring: Wiring, number: int, first: int, last: int) -> Stretch:
        """Take part in the steps `first` to `last` as worker `number` of `wiring`."""
        try:
            if self._links.generation != wiring.generation:
                self._wire(wiring, number, first - 1)
            for step in range(first, last + 1):
                self._step(step)
        except LinkBroken as error:
            self._links.close()
            return Stretch(broken=error.args)
        except BaseException:
            self._links.close()
            raise
        return Stretch()

    def give_up(self, generation: int) -> None:
        """By any thread: leave whatever is done for `generation` and those before it."""
        self._links.give_up(generation)

    def close(self) -> None:
        """Break what is linked, and give the memory back."""
        self._links.close()
        if self._memory is not None:
            self._memory.close()

    def _wire(self, wiring: Wiring, number: int, committed: int) -> None:
        self._links.begin(wiring.generation)
        self._generation, self._shards = wiring.generation, wiring.dealt[number]
        memory = self._memory = self._room(len(self._shards))
        caller = Caller(WORKER, number, wiring.generation, os.getpid(), memory.descriptor)
        blocks = shares(parameter_layout(network_graph(self._plan.network)).blocks, len(wiring.aggregators))
        found = []
        for k, place in enumerate(wiring.aggregators):
            address = place.host, place.port
            link, shares_memory = connect(address, f"aggregator {k}", caller, wiring.secret, self._links)
            in_half = self._plan.half_gradients
            found.append(_Aggregator(link, shares_memory, memory, span(blocks[k]), in_half))
        self._inbox = Inbox([each.link for each in found])
        # Not all workers begin with the same one; those to which the vector itself is sent come first.
        at = number % len(found)
        self._aggregators = sorted(found[at:] + found[:at], key=lambda each: not each.parameters)
        self._header = memoryview(bytearray(GRADIENT.size))
        self._receive(committed)

    def _room(self, shards: int) -> Memory:
        """For so many shards: what there is, if it fits; else a new one, once nothing refers to the old one."""
        if self._memory is not None:
            if len(self._memory.gradients) == shards:
                return self._memory
            self._memory.close()
            self._memory, self._aggregators = None, []
            self._worker.forget_vectors()
        return Memory(self._plan, shards)

    def _step(self, step: int) -> None:
        assert self._memory is not None
        for k, (shard, gradient) in enumerate(zip(self._shards, self._memory.gradients, strict=True)):
            found = self._worker.gradient(step, shard, self._memory.parameters, gradient)
            GRADIENT.pack_into(
                self._header, 0, self._generation, step, shard, found.rows, found.weight_sum, found.loss_sum
            )
            for each in self._aggregators:
                each.link.send(self._header, *each.piece(k))
        self._receive(step)

    def _receive(self, step: int) -> None:
        """The parameters that `step` has led to."""
        self._inbox.fill({each.link: self._share(each, step) for each in self._aggregators})

    def _share(self, aggregator: _Aggregator, step: int) -> Iterator[memoryview]:
        aggregator.link.due = PARAMETERS.size + sum(map(len, aggregator.parameters))
        yield aggregator.header
        expect(aggregator.link, PARAMETERS.unpack(aggregator.header), (self._generation, step))
        yield from aggregator.parameters


def expect(link: Link, found: Sequence[Any], expected: Sequence[Any]) -> None:
    """LinkBroken where a header is not what is due now."""
    if tuple(found) != tuple(expected):
        raise LinkBroken(link.peer, f"it has sent {tuple(found)} where {tuple(expected)} was due")
