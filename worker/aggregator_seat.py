"""An aggregator's side of the socket exchange: gradients in, parameters out, step after step without any call.

A step is taken as over object references: the gradients of its blocks, summed in shard order; what all have reduced,
told to all; the commit. Parameters that take nothing of the others' are sent to the workers before it, so that no
worker waits until all have heard of all. What was reduced last is kept: where one aggregator has heard of all, and
committed, and another has not when links break, the trainer has the other commit it from what all have kept
(`worker.wiring.settle`). One may be a step ahead of another: two steps are kept.
"""

import socket
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from core.network import network_graph, parameter_layout
from worker import memfd
from worker.errors import LinkBroken
from worker.gradient_seat import Memory, expect
from worker.greeting import AGGREGATOR, WORKER, Caller, accept, connect, listen
from worker.links import Inbox, Link, Links, raw
from worker.numerics import machine
from worker.plan import Reduced, ShardReport, StepPlan, StepReport
from worker.reduction import shares, span
from worker.wiring import GRADIENT, PARAMETERS, REDUCED, Place, Standing, Stretch, Wiring

Array = NDArray[Any]


class Reduces(Protocol):
    """What a seat's aggregator does: `worker.aggregator.ParameterAggregator`, begun."""

    committed: int

    def parameters(self, which: str = "current") -> Array:
        """The committed parameters of its share."""

    def reduce(self, step: int, gradients: Sequence[Array], reports: Sequence[ShardReport]) -> Reduced:
        """Sum the gradients of its share up."""

    def update(self, step: int) -> bool:
        """Whether it has the parameters that the step leads to ("next") before the others are heard."""

    def commit(self, step: int, reduced: Sequence[Reduced], reports: Sequence[ShardReport]) -> StepReport:
        """The step, from what all have reduced."""


class _Worker:
    """A worker as an aggregator sees it."""

    def __init__(self, link: Link, shards: tuple[int, ...], memory: Memory | None, part: slice, in_half: bool) -> None:
        """`in_half`: what it sends of a gradient is in float16."""
        self.link, self.shards, self.header = link, shards, memoryview(bytearray(GRADIENT.size))
        # Its own memory's, where this process has mapped it; else they are received and sent.
        self.gradients = None if memory is None else [gradient[part] for gradient in memory.gradients]
        self.parameters = None if memory is None else memory.parameters[part]
        self.half = np.empty(part.stop - part.start, np.float16) if in_half else None


class _Peer:
    """Another aggregator, whose share has so many blocks."""

    def __init__(self, link: Link, blocks: int, shards: int) -> None:
        # By itself: one that is ahead may have spoken of the next step before another has of this one.
        self.link, self.inbox, self.header = link, Inbox([link]), memoryview(bytearray(REDUCED.size))
        self.squares, self.evidence = np.empty(blocks), np.empty((shards, 2))


class AggregatorSeat:
    """Held by an aggregator for as long as it has the job."""

    def __init__(self, aggregator: Reduces, plan: StepPlan, number: int, of: int) -> None:
        self._aggregator, self._plan, self._number = aggregator, plan, number
        self._shares = shares(parameter_layout(network_graph(plan.network)).blocks, of)
        self._part = span(self._shares[number])
        self._links = Links()
        self._listener: socket.socket | None = None
        self._reports: list[ShardReport] = []
        self._reduced: deque[tuple[int, Reduced]] = deque(maxlen=2)  # the last steps that were reduced

    def listen(self, host: str) -> Place:
        """Be reached by that address of this machine from now on."""
        self._listener = listen(host)
        return Place(host, self._listener.getsockname()[1], machine())

    def serve(self, wiring: Wiring, first: int, last: int) -> Stretch:
        """Take the steps `first` to `last` with all of `wiring`. Raises Diverged."""
        reports: list[StepReport] = []
        try:
            if self._links.generation != wiring.generation:
                self._wire(wiring)
                self._send(first - 1)
            for step in range(first, last + 1):
                reports.append(self._step(step))
        except LinkBroken as error:
            self._links.close()
            self._let_go()
            return Stretch(tuple(reports), error.args)
        except BaseException:
            self._links.close()
            raise
        return Stretch(tuple(reports))

    def give_up(self, generation: int) -> None:
        """By any thread: leave whatever is done for `generation` and those before it."""
        self._links.give_up(generation)

    def standing(self) -> Standing:
        """Where it is, nothing being done."""
        return Standing(self._aggregator.committed, tuple(self._reduced))

    def commit_kept(self, reduced: Sequence[Reduced]) -> StepReport:
        """Commit the step that was reduced last: `reduced` is what all have, in the order of their shares."""
        return self._aggregator.commit(self._reduced[-1][0], reduced, self._reports)

    def close(self) -> None:
        """Break what is linked, and listen no more."""
        self._links.close()
        if self._listener is not None:
            self._listener.close()

    # Wiring.

    def _wire(self, wiring: Wiring) -> None:
        self._let_go()
        links, memories = self._linked(wiring)
        self._generation = wiring.generation
        workers = [
            _Worker(links[WORKER, k], shards, memories.get(k), self._part, self._plan.half_gradients)
            for k, shards in enumerate(wiring.dealt)
        ]
        self._slots = [np.empty(0)] * self._plan.shards
        for worker in workers:
            for place, shard in enumerate(worker.shards):
                mapped = worker.gradients
                self._slots[shard] = self._aggregator.parameters().copy() if mapped is None else mapped[place]
        # Parameters go first to those that have to wait for a link.
        self._workers = sorted(workers, key=lambda worker: worker.parameters is not None)
        others = [k for k in range(len(wiring.aggregators)) if k != self._number]
        self._peers = {k: _Peer(links[AGGREGATOR, k], len(self._shares[k]), self._plan.shards) for k in others}
        self._from_workers = Inbox([worker.link for worker in self._workers])
        self._header = memoryview(bytearray(max(PARAMETERS.size, REDUCED.size)))

    def _let_go(self) -> None:
        """Map no memory of the workers any more: they may be about to make other ones."""
        self._workers, self._slots = list[_Worker](), list[Array]()

    def _linked(self, wiring: Wiring) -> tuple[dict[tuple[int, int], Link], dict[int, Memory]]:
        """Links to all others, by kind and number, and the memory of workers that could be mapped.

        An aggregator calls those before it, and is called by those after it and by the workers.
        """
        assert self._listener is not None
        number, here = self._number, machine()
        memories: dict[int, Memory] = {}

        def welcome(caller: Caller) -> bool:
            """Whether its memory could be mapped."""
            if caller.kind != WORKER or wiring.machines[caller.number] != here:
                return False
            where, shards = memfd.path(caller.descriptor, caller.pid), len(wiring.dealt[caller.number])
            try:
                memories[caller.number] = Memory(self._plan, shards, where)
            except (OSError, ValueError):
                return False  # another user's, say: its vectors come over the link
            return True

        self._links.begin(wiring.generation)
        links: dict[tuple[int, int], Link] = {}
        caller = Caller(AGGREGATOR, number, wiring.generation)
        for k, place in enumerate(wiring.aggregators[:number]):
            address = place.host, place.port
            links[AGGREGATOR, k] = connect(address, f"aggregator {k}", caller, wiring.secret, self._links)[0]
        expected = [(AGGREGATOR, k) for k in range(number + 1, len(wiring.aggregators))]
        expected += [(WORKER, k) for k in range(len(wiring.dealt))]
        links |= accept(self._listener, expected, wiring.generation, wiring.secret, welcome, self._links)
        return links, memories

    # A step.

    def _step(self, step: int) -> StepReport:
        self._arrived: list[ShardReport | None] = [None] * self._plan.shards
        self._from_workers.fill({worker.link: self._pieces(worker, step) for worker in self._workers})
        self._reports = [report for report in self._arrived if report is not None]
        reduced = self._aggregator.reduce(step, self._slots, self._reports)
        self._reduced.append((step, reduced))
        self._tell(step, reduced)
        early = self._aggregator.update(step)
        if early:
            self._send(step, "next")
        report = self._aggregator.commit(step, self._heard(step, reduced), self._reports)
        if not early:
            self._send(step)
        return report

    def _pieces(self, worker: _Worker, step: int) -> Iterator[memoryview]:
        """The buffers for what a worker sends in `step`."""
        for shard in worker.shards:
            slot = self._slots[shard]
            comes = slot if worker.half is None else worker.half
            worker.link.due = GRADIENT.size + (comes.nbytes if worker.gradients is None else 0)
            yield worker.header
            generation, of, number, rows, weight, loss = GRADIENT.unpack(worker.header)
            expect(worker.link, (generation, of, number), (self._generation, step, shard))
            if worker.gradients is None:
                yield raw(comes)
                if comes is not slot:
                    slot[...] = comes
            self._arrived[shard] = ShardReport(step, shard, rows, weight, loss)

    def _tell(self, step: int, reduced: Reduced) -> None:
        """The others what this one has reduced: so little that it fits into a socket's buffers before anybody reads."""
        if not self._peers:
            return
        REDUCED.pack_into(self._header, 0, self._generation, step, len(reduced.shards))
        said = [self._header[: REDUCED.size], raw(np.array(reduced.squares))]
        if reduced.shards:
            said.append(raw(np.array(reduced.shards, np.float64)))
        for peer in self._peers.values():
            peer.link.send(*said)

    def _heard(self, step: int, reduced: Reduced) -> list[Reduced]:
        """What all have reduced, in the order of their shares."""
        for peer in self._peers.values():
            peer.inbox.fill({peer.link: self._reductions(peer, step)})
        return [reduced if k == self._number else _reduced(self._peers[k]) for k in range(len(self._shares))]

    def _reductions(self, peer: _Peer, step: int) -> Iterator[memoryview]:
        peer.link.due = REDUCED.size + peer.squares.nbytes
        yield peer.header
        generation, of, count = REDUCED.unpack(peer.header)
        counts = (0, self._plan.shards)
        expect(peer.link, (generation, of, count in counts), (self._generation, step, True))
        yield raw(peer.squares)
        if count:
            peer.link.due = peer.evidence.nbytes
            yield raw(peer.evidence)

    def _send(self, step: int, which: str = "current") -> None:
        """The parameters that `step` leads to, to all workers."""
        PARAMETERS.pack_into(self._header, 0, self._generation, step)
        header, parameters = self._header[: PARAMETERS.size], self._aggregator.parameters(which)
        for worker in self._workers:
            if worker.parameters is None:
                worker.link.send(header, raw(parameters))
            else:
                worker.parameters[...] = parameters
                worker.link.send(header)


def _reduced(peer: _Peer) -> Reduced:
    """As it has told."""
    count = REDUCED.unpack(peer.header)[2]
    evidence = tuple((bool(sound), float(square)) for sound, square in peer.evidence.tolist()) if count else ()
    return Reduced(tuple(peer.squares.tolist()), evidence)
