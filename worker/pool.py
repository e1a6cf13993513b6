"""The actors of all jobs: which wait, and whose the others are. No Ray here: an actor is a name.

A name is the actor's class, a dash, and some digits. Trainers and aggregators are kept by the controller; a worker
knows itself whose it is (`GradientWorker.hold`), so that trainers take workers and give them back without asking
anybody: what the pool believes to be idle is a guess, and the worker's own word counts. Every actor is found again by
name when the controller is another one.
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

TRAINER, AGGREGATOR, WORKER = "TrainerHost", "ParameterAggregator", "GradientWorker"
NOBODY = ""  # holds the workers that wait
SOON_S = 1.0  # who does not answer within this may be busy, or not there yet


@dataclass(frozen=True)
class Capacity:
    """What the cluster has, and how many worker slots no job holds."""

    cpus: int
    worker_slots: int
    free_worker_slots: int


@dataclass(frozen=True)
class Crew:
    """The actors of one job, by name."""

    trainer: str
    aggregator: str
    workers: tuple[str, ...]


class Actors(Protocol):
    """All actors of ours, by name."""

    def names(self) -> set[str]:
        """Those that are there, or about to be."""

    def slots(self) -> int:
        """How many workers there is room for in the whole cluster."""

    def create(self, name: str, holder: str = NOBODY) -> None:
        """A new actor, which may still be starting when this returns; a worker is `holder`'s."""

    def answers(self, name: str) -> bool:
        """Whether the actor is there and answers; one that does not is killed."""

    def hold(self, worker: str, holder: str) -> bool:
        """Whether the worker was nobody's, and is now `holder`'s; one that does not answer is killed."""

    def holders(self, workers: Iterable[str], seconds: float) -> dict[str, str]:
        """Whose each is of those that answer within `seconds`."""

    def crew(self, trainer: str) -> Crew | None:
        """The crew of the job that it runs; None when it runs none, or is gone."""

    def reset(self, trainer: str) -> None:
        """Have it forget its job, which has ended."""

    def kill(self, name: str) -> None:
        """End it, if it is there."""


def kind_of(name: str) -> str:
    """The class of the actor of that name."""
    return name.split("-")[0]


def new_name(kind: str) -> str:
    """A name that no actor has."""
    return f"{kind}-{uuid.uuid4().hex[:12]}"


def has_room(names: set[str], actors: Actors) -> bool:
    """Whether there is a slot for another worker, where `names` are there: one without would wait for it for ever, and
    for a worker that is free meanwhile nobody would look."""
    return sum(kind_of(name) == WORKER for name in names) < actors.slots()


def recruit(actors: Actors, holder: str, own: list[str]) -> str | None:
    """A worker for the trainer `holder`: one that waits, or a new one where there is a free slot; else None.

    Its name is added to `own`, the trainer's workers, before it is the trainer's: who lists the actors first, and asks
    for the trainer's crew then, never finds one of whom nobody knows.
    """
    workers = {name for name in actors.names() if kind_of(name) == WORKER}
    for name, held_by in actors.holders(workers - set(own), SOON_S).items():
        if held_by == NOBODY:
            own.append(name)
            if actors.hold(name, holder):
                return name
            own.remove(name)
    if not has_room(workers, actors):
        return None
    name = new_name(WORKER)
    own.append(name)
    actors.create(name, holder)
    return name


class Pool:
    """The controller's view of all actors."""

    def __init__(self, actors: Actors) -> None:
        """Whatever an earlier controller has left: trainers at work with their crews, and the rest as idle."""
        self._actors = actors
        self._idle: dict[str, list[str]] = {TRAINER: [], AGGREGATOR: [], WORKER: []}
        self.busy: dict[str, Crew] = {}  # by the trainer's name
        names = actors.names()
        for name in sorted(names):
            if kind_of(name) == TRAINER and (crew := actors.crew(name)) is not None:
                self.busy[name] = crew
        rest = names - self._taken()
        for name in sorted(rest):
            if kind_of(name) in (TRAINER, AGGREGATOR) and actors.answers(name):
                self._idle[kind_of(name)].append(name)
        self._sort_out({name for name in rest if kind_of(name) == WORKER}, seconds=10 * SOON_S)

    @property
    def held(self) -> int:
        """How many workers all jobs have, as far as is known."""
        return sum(len(crew.workers) for crew in self.busy.values())

    def warm(self, trainers: int, workers: int) -> None:
        """Make actors ahead, until so many of each wait, as far as there is room for them."""
        for kind, count in ((TRAINER, trainers), (AGGREGATOR, trainers), (WORKER, workers)):
            while len(self._idle[kind]) < count and (name := self._make(kind)):
                self._idle[kind].append(name)

    def take(self, workers: int) -> Crew:
        """The actors for a job, from those that wait as far as they go. Fewer workers where there is no room for more:
        the job's trainer recruits the rest."""
        trainer = self._take(TRAINER)
        found = [self._take(WORKER, trainer) for _ in range(workers)]
        crew = Crew(trainer, self._take(AGGREGATOR), tuple(name for name in found if name))
        self.busy[trainer] = crew
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
        crew = self._actors.crew(trainer)
        if crew is None:  # it has died since it told how the job ended
            self.forget(trainer)
            return
        self._actors.reset(trainer)
        del self.busy[trainer]
        self._idle[TRAINER].append(trainer)
        if self._actors.answers(crew.aggregator):
            self._idle[AGGREGATOR].append(crew.aggregator)
        self._sort_out(set(crew.workers), seconds=10 * SOON_S)

    def forget(self, trainer: str) -> None:
        """End a job's processes: its crew, and what its trainer had recruited since, which nobody knows any more."""
        crew = self.busy.pop(trainer, None)
        for name in () if crew is None else (crew.trainer, crew.aggregator):
            self._actors.kill(name)
        workers = {name for name in self._actors.names() if kind_of(name) == WORKER}
        known = set() if crew is None else set(crew.workers)
        self._sort_out(workers - self._taken() - (set(self._idle[WORKER]) - known), seconds=SOON_S)

    def _taken(self) -> set[str]:
        """The actors of all jobs, workers that their trainers have recruited since included."""
        crews = list(self.busy.values())
        crews += [crew for crew in map(self._actors.crew, self.busy) if crew is not None]
        return {name for crew in crews for name in (crew.trainer, crew.aggregator, *crew.workers)}

    def _sort_out(self, workers: set[str], seconds: float) -> None:
        """Of `workers`, which no running job has: those that are nobody's wait; who is still held, or silent, ends."""
        holders = self._actors.holders(workers, seconds)
        idle = self._idle[WORKER]
        for name in sorted(workers):
            if holders.get(name) == NOBODY:
                idle += [name] if name not in idle else []
            elif holders.get(name) not in self.busy:  # else a running job has just recruited it
                self._actors.kill(name)

    def _take(self, kind: str, holder: str = NOBODY) -> str:
        while self._idle[kind]:
            name = self._idle[kind].pop()
            if self._actors.hold(name, holder) if kind == WORKER else self._actors.answers(name):
                return name
        return self._make(kind, holder)

    def _make(self, kind: str, holder: str = NOBODY) -> str:
        """A new actor; "" where it would be a worker without a slot."""
        if kind == WORKER and not has_room(self._actors.names(), self._actors):
            return ""
        name = new_name(kind)
        self._actors.create(name, holder)
        return name
