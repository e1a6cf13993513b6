"""A world without I/O for the real JobKeeper, Lead and registrar: two controllers, trainers, a store, MLflow, users.

Whatever a controller calls may go wrong: before and after each call it may crash, or be stopped for a while, in which
everybody else goes on; an answer may be lost after the deed, a message be dropped, doubled, or come late. All of it is
drawn from one seed. The store is a dictionary of real records that change by the real `job_state.step` alone. Every
write is checked against what must never happen; `Violation` says what did.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from random import Random
from typing import Any

from service import registrar
from service.errors import InvalidTransition, LeadLost, LeaseLost, StoreUnavailable
from service.job_events import Cancel, Pause, Resume
from service.job_keeper import JobKeeper
from service.job_state import FINAL, PAUSED, RUNNING
from service.lead import Lead
from service.tracked import RunReference, TrackingDown
from worker.plan import MetricPoint

from .simulated_cluster import Mlflow, SimulatedCluster, SimulatedTrainer, Violation
from .simulated_store import SimulatedStore, StoreView

LEASE = 30.0


class Crash(BaseException):
    """A process dies here. Not an Exception: nobody gets to handle it."""


class World:
    """Everything there is, drawn from `seed`. `trouble` in 0..1: how often something goes wrong."""

    def __init__(self, seed: int, trouble: float) -> None:
        self.random, self.trouble, self.now = Random(seed), trouble, 1000.0
        self.store = SimulatedStore(self)
        self.trainers: list[SimulatedTrainer] = []
        # By job: the step, and the points up to it that the store may not have: without them a series gets a gap.
        self.checkpoints: dict[str, tuple[int, list[MetricPoint]]] = {}
        self.mail: list[Callable[[], None]] = []  # what is on its way to trainers
        self.versions: dict[str, int] = {}  # MLflow's, by job
        self.shortage: str | None = None  # of room on the disk that all share
        self.numbers = itertools.count(1)
        self.remote = self.random.random() < 0.5  # the controllers' hosts know nothing of each other's processes
        self.controllers = [SimulatedController(self, name) for name in ("A", "B")]

    def live(self, turns: int) -> None:
        """So many things happen, bad ones among them."""
        for _ in range(turns):
            self.anything()

    def anything(self, depth: int = 0) -> None:
        """One thing happens. `depth`: how many controllers are stopped at the moment."""
        controllers = [c for c in self.controllers if not c.is_stopped]
        draw = self.random.random()
        if draw < 0.45 and controllers:
            self.random.choice(controllers).act(depth)
        elif draw < 0.65:
            self.train()
        elif draw < 0.75:
            self.user()
        elif draw < 0.80 and self.mail:
            self.mail.pop(self.random.randrange(len(self.mail)))()
        elif draw < 0.82 and self.trainers:
            self.random.choice(self.trainers).alive = self.random.random() > self.trouble
        elif draw < 0.84:
            self.shortage = "the disk is nearly full" if self.shortage is None and self.trouble else None
        elif draw < 0.85:
            self.store.is_full = bool(self.trouble) and not self.store.is_full
        else:
            self.now += self.random.choice((0.3, 1.0, 3.0, 3.0, 40.0 if self.trouble else 3.0))

    def train(self) -> None:
        """Every trainer goes on by a step or so; one that nobody polls ends."""
        for trainer in self.trainers:
            if self.random.random() < 0.7:
                trainer.advance()
        self.trainers = [trainer for trainer in self.trainers if trainer.alive]

    def user(self) -> None:
        """Somebody submits a job, or wants something of one."""
        if self.store.is_full:
            return  # 507, as users get it
        jobs = list(self.store.jobs.values())
        if len(jobs) < 4 and self.random.random() < 0.5:
            self.store.submit(self.random)
        elif jobs:
            wish = self.random.choice((Cancel, Pause, Resume, Resume))
            try:
                self.store.change(self.random.choice(jobs).id, wish(self.now))
            except InvalidTransition:
                return  # 409, as users get it

    def heal(self, rounds: int = 400) -> None:
        """Nothing goes wrong any more, and nobody wants anything but that the jobs go on that users have paused: every
        job must end, those that the disk has paused by themselves."""
        self.trouble, self.shortage, self.store.is_full = 0.0, None, False
        for _ in range(rounds):
            if all(job.status in FINAL for job in self.store.jobs.values()):
                break
            for job in list(self.store.jobs.values()):
                if job.id in self.store.paused_by_users and (job.status == PAUSED or job.pause_requested):
                    self.store.change(job.id, Resume(self.now))
            for mail in self.mail:
                mail()
            self.mail.clear()
            for controller in self.controllers:
                controller.act(0)
            for trainer in self.trainers:
                trainer.advance()
            self.trainers = [trainer for trainer in self.trainers if trainer.alive]
            self.now += 0.6
        for job in self.store.jobs.values():
            if job.status not in FINAL:
                raise Violation(f"{job.id} does not end: {job}")
            self.store.check_end(job)

    def trouble_with(self, share: float) -> bool:
        """Whether something goes wrong now that does so in `share` of the cases when all is trouble."""
        return self.random.random() < share * self.trouble

    @contextmanager
    def call(self, controller: "SimulatedController") -> Iterator[None]:
        """Around each call of a controller: a crash or a stop before it, and after it."""
        controller.interrupt()
        yield
        controller.interrupt()


class SimulatedController:
    """A controller's process, and whoever starts it again."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.skew = world.random.choice((0.0, 0.0, -4.0, 4.0))
        self.is_stopped, self.depth = False, 0
        self.process = ""
        self.keeper: JobKeeper | None = None
        self.disk = SimulatedDisk(world)
        self.start()

    def start(self) -> None:
        """A new process."""
        self.process = f"{self.name}{next(self.world.numbers)}"
        self.store: Any = StoreView(self.world, self)
        clock, wall_clock = (lambda: self.world.now), (lambda: self.world.now + self.skew)
        self.lead = Lead(self.store, self.process, LEASE, self.is_gone, clock, wall_clock)
        self.keeper = None

    def is_gone(self, process: str) -> bool:
        """Whether it has ended, as far as this one can tell."""
        return not self.world.remote and process not in {c.process for c in self.world.controllers}

    def act(self, depth: int) -> None:
        """One turn, or an attempt to take the lead, or a pass of the publisher's."""
        self.depth = depth
        try:
            if self.keeper is None:
                if self.lead.take():
                    cluster, artifacts, settings = SimulatedCluster(self.world, self), Artifacts(self.world), Settings()
                    self.disk = SimulatedDisk(self.world)
                    parts: Any = self.store, cluster, artifacts, settings, self.lead, self.disk
                    clocks = (lambda: self.world.now), (lambda: self.world.now + self.skew)
                    keeper = JobKeeper(*parts, *clocks)
                    keeper.adopt()
                    self.keeper = keeper
                return
            self.keeper.turn()
            if self.lead.is_held:
                self.publish()
        except (Crash, LeadLost):
            self.start()
        except StoreUnavailable:
            if self.keeper is None:
                self.start()  # it could not begin; else the next turn goes on where this one broke off

    def publish(self) -> None:
        """What the publisher does for jobs that are to be registered."""
        for job in list(self.world.store.jobs.values()):
            if job.status == RUNNING and job.result is not None and self.lead.is_held:
                try:
                    parts: Any = self.store, Artifacts(self.world), Mlflow(self.world)
                    registrar.finish(*parts, job, RunReference(job.id, "0"))
                except (LeaseLost, TrackingDown, StoreUnavailable):
                    continue  # another one's by now; or later, when MLflow is back, or the store

    def interrupt(self) -> None:
        """This process may crash here; or be stopped while the others go on, and may be killed meanwhile."""
        world = self.world
        if world.trouble_with(0.02):
            raise Crash
        if self.depth < 1 and world.trouble_with(0.02):
            self.is_stopped = True
            for _ in range(world.random.choice((3, 10, 40))):
                world.anything(self.depth + 1)
            self.is_stopped = False
            if world.trouble_with(0.3):
                raise Crash


class SimulatedDisk:
    """The disk as one controller sees it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.seen: str | None = None  # when it was looked at last

    def shortage(self) -> str | None:
        self.seen = self.world.shortage
        return self.seen


class Settings:
    """What the keeper reads of the settings."""

    max_running_jobs, worker_slots = 3, 4


class Artifacts:
    """Model files: they are what their hash says."""

    root = "artifacts"

    def __init__(self, world: World) -> None:
        self.world = world

    def put_if_room(self, files: Mapping[str, bytes]) -> str | None:
        return "ab" * 32 if self.world.shortage is None else None

    def check(self, sha256: str) -> str:
        return sha256
