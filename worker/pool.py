"""The actors of all jobs: which wait, and whose the others are. No Ray here: an actor is a name.

A name is the actor's class, the node it was made on, and some digits, with dashes between: who knows the name knows
where the actor is. Workers stand wherever `worker.placement` says, trainers beside them or on the controller's node;
and of aggregators a job has one on each node that its workers are placed on.

Trainers and aggregators are kept by the controller; a worker knows itself whose it is (`GradientWorker.hold`), so that
trainers take workers and give them back without asking anybody: what the pool believes to be idle is a guess, and the
worker's own word counts. Every actor is found again by name when the controller is another one.
"""

import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from worker.placement import PACK, Node, choose, choose_all, trainer_place

TRAINER, AGGREGATOR, WORKER = "TrainerHost", "ParameterAggregator", "GradientWorker"
NOBODY = ""  # holds the workers that wait
RESTING = "nobody any more"  # and those that are about to be ended
YOUNG_S = 60.0  # a new actor may take this long to answer
SOON_S = 1.0  # who does not answer within this may be busy, or not there yet


@dataclass(frozen=True)
class Crew:
    """The actors of one job, by name."""

    trainer: str
    aggregators: tuple[str, ...]  # at least one
    workers: tuple[str, ...]
    placement: str = PACK  # of further workers
    idle_cores: bool = False  # further workers go where a core is idle, and nowhere else

    @property
    def all(self) -> tuple[str, ...]:
        """All their names."""
        return (self.trainer, *self.aggregators, *self.workers)


class Actors(Protocol):
    """All actors of ours, by name."""

    def names(self) -> set[str]:
        """Those that are there, or about to be."""

    def nodes(self) -> Sequence[Node]:
        """The cluster's nodes, this process's own first."""

    def create(self, name: str, holder: str = NOBODY) -> None:
        """A new actor on the node that its name tells, which may still be starting; a worker is `holder`'s."""

    def answering(self, names: Sequence[str]) -> set[str]:
        """Those that are there and answer, all asked at once; who does not is killed."""

    def ended(self, aggregators: Iterable[str]) -> set[str]:
        """Those that have no job any more, whatever they were at, all told at once; who does not say so is killed."""

    def hold(self, worker: str, holder: str) -> bool:
        """Whether the worker was nobody's, and is now `holder`'s; one that does not answer is killed."""

    def holders(self, workers: Iterable[str], seconds: float) -> dict[str, str]:
        """Whose each is of those that answer within `seconds`."""

    def crews(self, trainers: Iterable[str]) -> dict[str, Crew]:
        """The crews of the jobs that they run, all asked at once; of one that runs none, or is gone, none."""

    def reset(self, trainer: str) -> None:
        """Have it forget its job, which has ended."""

    def kill(self, name: str) -> None:
        """End it, if it is there."""


def kind_of(name: str) -> str:
    """The class of the actor of that name."""
    return name.split("-")[0]


def node_of(name: str) -> str:
    """The node of the actor of that name."""
    return name.split("-")[1]


def new_name(kind: str, node: str) -> str:
    """A name that no actor has."""
    return f"{kind}-{node}-{uuid.uuid4().hex[:8]}"


def has_room(names: set[str], node: Node) -> bool:
    """Whether there is a slot on `node` for another worker, where `names` are there: one without would wait for it for
    ever, and for a worker that is free meanwhile nobody would look."""
    return sum(kind_of(name) == WORKER and node_of(name) == node.name for name in names) < node.slots


def recruit(actors: Actors, crew: Crew, own: list[str], beside: bool = False) -> str | None:
    """A worker for `crew`'s trainer: one that waits, or a new one where there is a free slot; else None.

    `beside`: on the trainer's own node, and on no other. Its name is added to `own`, the trainer's workers, before it
    is the trainer's: who lists the actors first, and asks for the trainer's crew then, never finds one of whom nobody
    knows.
    """
    workers = {name for name in actors.names() if kind_of(name) == WORKER}
    waiting = {name for name, held_by in actors.holders(workers - set(own), SOON_S).items() if held_by == NOBODY}
    nodes, where = actors.nodes()[:1] if beside else actors.nodes(), (crew.placement, crew.idle_cores)
    while (at := choose(nodes, _per_node(workers - waiting), _per_node(own), *where)) is not None:
        name = next((name for name in sorted(waiting) if node_of(name) == at), None)
        if name is not None:
            own.append(name)
            if actors.hold(name, crew.trainer):
                return name
            own.remove(name)
            waiting.remove(name)  # somebody else was faster, or it is dead
            continue
        (node,) = (node for node in nodes if node.name == at)
        if not has_room(workers, node):
            return None
        name = new_name(WORKER, at)
        own.append(name)
        actors.create(name, crew.trainer)
        return name
    return None


def _per_node(names: Iterable[str]) -> Counter[str]:
    return Counter(map(node_of, names))


class Pool:
    """The controller's view of all actors."""

    def __init__(
        self,
        actors: Actors,
        placement: str = PACK,
        rest_seconds: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Whatever an earlier controller has left: trainers at work with their crews, and the rest as idle.

        `rest_seconds`: nobody waits any longer on a node that no job has used for so long.
        """
        self._actors, self._placement, self._rest_seconds, self._clock = actors, placement, rest_seconds, clock
        self._used_at: dict[str, float] = {}  # by node: when a job was seen there last, or else the node itself first
        self._idle: dict[str, list[str]] = {TRAINER: [], AGGREGATOR: [], WORKER: []}
        self.busy: dict[str, Crew] = {}  # by the trainer's name
        self._made_at: dict[str, float] = {}  # by name
        names = actors.names()
        self.busy |= actors.crews(sorted(name for name in names if kind_of(name) == TRAINER))
        rest = names - self._taken()
        self._idle[TRAINER] += sorted(actors.answering([name for name in rest if kind_of(name) == TRAINER]))
        self._idle[AGGREGATOR] += sorted(actors.ended(name for name in rest if kind_of(name) == AGGREGATOR))
        self._sort_out({name for name in rest if kind_of(name) == WORKER}, seconds=10 * SOON_S)

    @property
    def held(self) -> int:
        """How many workers all jobs have, as far as is known."""
        return sum(len(crew.workers) for crew in self.busy.values())

    def warm(self, trainers: int, workers: int) -> None:
        """Make actors ahead, until so many of each wait, as far as there is room for them."""
        nodes = self._awake()
        while len(self._idle[WORKER]) < workers:
            # As for the one job that would take them all.
            busy = self._busy() + _per_node(self._idle[WORKER])
            at = choose(nodes, busy, _per_node(self._idle[WORKER]), self._placement)
            name = "" if at is None else self._make(WORKER, at)
            if not name:
                break
            self._idle[WORKER].append(name)
        places = choose_all(nodes, self._busy(), 1, self._placement)
        if not places:
            return  # nobody knows yet beside which workers they will have to be
        place = trainer_place(nodes, places)
        for kind in (TRAINER, AGGREGATOR):
            for _ in range(trainers - _per_node(self._idle[kind])[place]):
                self._idle[kind].append(self._make(kind, place))

    def _awake(self) -> list[Node]:
        """The nodes on which actors are to wait: this process's own, and those that a job has used of late. On the
        others nobody is left: a node where nothing runs is one that an autoscaler may take away."""
        first, *others = self._actors.nodes()
        now, used = self._clock(), {node_of(name) for crew in self.busy.values() for name in crew.all}
        self._used_at = {
            node.name: now if node.name in used else self._used_at.get(node.name, now) for node in (first, *others)
        }
        awake = [first, *(node for node in others if now - self._used_at[node.name] <= self._rest_seconds)]
        names = {node.name for node in awake}
        for kind, idle in self._idle.items():
            self._idle[kind] = [name for name in idle if node_of(name) in names]
            for name in set(idle) - set(self._idle[kind]):
                # A worker may have been recruited meanwhile: its own word counts.
                if kind != WORKER or self._actors.hold(name, RESTING):
                    self._actors.kill(name)
        return awake

    def take(self, workers: int, idle_cores: bool = False) -> Crew:
        """The actors for a job, from those that wait as far as they go. Fewer workers where there is no room for more:
        the job's trainer recruits the rest, with `idle_cores` only where a core is idle."""
        nodes = self._actors.nodes()
        places = choose_all(nodes, self._busy(), workers, self._placement)
        trainer = self._take(TRAINER, trainer_place(nodes, places))
        found = tuple(name for at in places if (name := self._take(WORKER, at, trainer)))
        used = list(dict.fromkeys(map(node_of, found))) or [node_of(trainer)]
        aggregators = tuple(self._take(AGGREGATOR, node) for node in used)
        crew = self.busy[trainer] = Crew(trainer, aggregators, found, self._placement, idle_cores)
        return crew

    def saw(self, trainer: str, workers: tuple[str, ...]) -> Crew:
        """The crew of a running job: its workers are these by now."""
        before = self.busy[trainer]
        crew = self.busy[trainer] = replace(before, workers=workers)
        left = set(before.workers) - set(workers) - set(self._idle[WORKER])
        self._idle[WORKER] = [name for name in self._idle[WORKER] if name not in workers] + sorted(left)
        return crew

    def release(self, trainer: str) -> None:
        """Take the actors of a job that has ended back."""
        crew = self._actors.crews([trainer]).get(trainer)
        if crew is None:  # it has died since it told how the job ended
            self.forget(trainer)
            return
        self._actors.reset(trainer)
        del self.busy[trainer]
        self._idle[TRAINER].append(trainer)
        self._idle[AGGREGATOR] += sorted(self._actors.ended(crew.aggregators))
        self._sort_out(set(crew.workers), seconds=10 * SOON_S)

    def forget(self, trainer: str) -> None:
        """End a job's processes: its crew, and what its trainer had recruited since, which nobody knows any more."""
        crew = self.busy.pop(trainer, None)
        for name in () if crew is None else (crew.trainer, *crew.aggregators):
            self._actors.kill(name)
        workers = {name for name in self._actors.names() if kind_of(name) == WORKER}
        known = set() if crew is None else set(crew.workers)
        self._sort_out(workers - self._taken() - (set(self._idle[WORKER]) - known), seconds=SOON_S)

    def _taken(self) -> set[str]:
        """The actors of all jobs, workers that their trainers have recruited since included."""
        crews = [*self.busy.values(), *self._actors.crews(self.busy).values()]
        return {name for crew in crews for name in crew.all}

    def _busy(self) -> Counter[str]:
        """How many workers all jobs have, by node."""
        return _per_node(name for crew in self.busy.values() for name in crew.workers)

    def _sort_out(self, workers: set[str], seconds: float) -> None:
        """Of `workers`, which no running job has: those that are nobody's wait; who is still held, or silent, ends."""
        holders = self._actors.holders(workers, seconds)
        idle = self._idle[WORKER]
        for name in sorted(workers):
            if holders.get(name) == NOBODY:
                idle += [name] if name not in idle else []
            elif holders.get(name) not in self.busy:  # else a running job has just recruited it
                self._actors.kill(name)

    def _take(self, kind: str, node: str, holder: str = NOBODY) -> str:
        idle = self._idle[kind]
        while here := [name for name in idle if node_of(name) == node]:
            idle.remove(name := here[-1])
            if self._actors.hold(name, holder) if kind == WORKER else self._actors.answering([name]):
                return name
            self._ask_all(node)
        return self._make(kind, node, holder)

    def _ask_all(self, node: str) -> None:
        """Forget who of those that wait on `node` does not answer, all asked at once: one was not to be had, and a node
        that is cut off has many. Those that may be starting yet are left alone."""
        young = {name for name, at in self._made_at.items() if self._clock() - at < YOUNG_S}
        there = [name for idle in self._idle.values() for name in idle if node_of(name) == node and name not in young]
        silent = set(there) - self._actors.answering(there)
        for idle in self._idle.values():
            idle[:] = [name for name in idle if name not in silent]

    def _make(self, kind: str, node: str, holder: str = NOBODY) -> str:
        """A new actor; "" where it would be a worker without a slot."""
        if kind == WORKER:
            room = next((each for each in self._actors.nodes() if each.name == node), None)
            if room is None or not has_room(self._actors.names(), room):
                return ""
        name, now = new_name(kind, node), self._clock()
        self._actors.create(name, holder)
        self._made_at = {name: at for name, at in self._made_at.items() if now - at < YOUNG_S} | {name: now}
        return name
