"""Ray and MLflow in the simulated world: trainers that are reached over messages, and a registry that loses answers."""

from typing import TYPE_CHECKING, Any

from service.job_state import CANCELLED, FAILED, PAUSED, SUCCEEDED
from service.tracked import RunReference, TrackingDown
from worker.cluster import Capacity
from worker.errors import TrainerLost
from worker.plan import MetricPoint, Progress, TrainerEvent, TrainerReport, TrainingFailure, TrainingResult

if TYPE_CHECKING:
    from .simulated_world import SimulatedController, World

SLOTS, ORPHAN = 4, 120.0
BROKEN = "broken"  # a job of this name diverges


class Violation(BaseException):
    """What must never happen has happened. Not an Exception: no code of the service gets to handle it."""


class SimulatedTrainer:
    """The process that trains one attempt of a job: five steps, from the last checkpoint on."""

    STEPS = 5

    def __init__(self, world: "World", job_id: str, attempt: int, workers: int) -> None:
        self.world, self.job_id, self.attempt, self.workers = world, job_id, attempt, workers
        self.step, points = world.checkpoints.get(job_id, (0, []))
        self.acknowledged = 0
        self.alive, self.cancelled, self.paused = True, False, False
        self.outcome: str | None = None
        self.heard_at = world.now
        self.updates: list[MetricPoint | TrainerEvent] = [self._event(f"goes on at step {self.step}"), *points]

    def _event(self, message: str) -> TrainerEvent:
        return TrainerEvent("log", "info", message, {}, self.world.now)

    def advance(self) -> None:
        if not self.alive or self.outcome is not None:
            return
        if self.world.now - self.heard_at > ORPHAN:
            self.alive = False
        elif self.cancelled:
            self.outcome = CANCELLED
        elif self.paused:
            untold = [u for u in self.updates[self.acknowledged :] if isinstance(u, MetricPoint)]
            self.world.checkpoints[self.job_id] = self.step, untold
            self.outcome = PAUSED
        elif self.step < self.STEPS:
            self.step += 1
            self.updates.append(MetricPoint("train_loss", self.step, 1.0 / self.step, self.world.now))
        else:
            name = self.world.store.jobs[self.job_id].name
            self.outcome = FAILED if name == BROKEN else SUCCEEDED

    def poll(self, acknowledged: int) -> TrainerReport:
        self.heard_at, self.acknowledged = self.world.now, acknowledged
        progress = Progress("training", 0, 1, self.step, self.STEPS, 1.0, None, self.workers)
        failure = TrainingFailure("diverged", "no numbers", {}) if self.outcome == FAILED else None
        result = None
        if self.outcome == SUCCEEDED:
            weights = f"weights of {self.job_id} at {self.step}"
            result = TrainingResult(
                weights, "model", "np", 1, self.step, 1, 0, None, None, {}, {"outputs": [{"name": "value"}]}, [], {}
            )
        new = tuple(self.updates[acknowledged:])
        return TrainerReport(
            self.job_id, self.attempt, progress, {}, acknowledged + 1, new, self.outcome, result, failure
        )


class SimulatedHandle:
    """A trainer as its controller reaches it: over messages that may fail."""

    def __init__(self, controller: "SimulatedController", trainer: SimulatedTrainer) -> None:
        self.controller, self.trainer = controller, trainer
        self.job_id, self.attempt, self.workers = trainer.job_id, trainer.attempt, trainer.workers

    def poll(self, acknowledged: int) -> TrainerReport:
        with self.controller.world.call(self.controller):
            self._reach()
            return self.trainer.poll(acknowledged)

    def cancel(self) -> None:
        self._send("cancelled")

    def pause(self) -> None:
        self._send("paused")

    def scale(self, workers: int) -> None:
        self._reach()  # the result is the same for any number of them

    def _reach(self) -> None:
        if self.controller.world.trouble_with(0.03):
            self.trainer.alive = False  # it did not answer in time, so it is killed
        if not self.trainer.alive:
            raise TrainerLost(self.job_id, self.attempt)

    def _send(self, flag: str) -> None:
        """Now; or later, twice, or never."""
        world = self.controller.world
        with world.call(self.controller):
            self._reach()
            copies = world.random.choice((0, 1, 2)) if world.trouble_with(0.3) else None
            if copies is None:
                setattr(self.trainer, flag, True)
            for _ in range(copies or 0):
                world.mail.append(lambda: setattr(self.trainer, flag, True))


class SimulatedCluster:
    """Ray, as one controller sees it."""

    def __init__(self, world: "World", controller: "SimulatedController") -> None:
        self.world, self.controller = world, controller

    def capacity(self) -> Capacity:
        # Who has an outcome has let its workers go, whether or not somebody has asked for it yet.
        held = sum(trainer.workers for trainer in self.world.trainers if trainer.alive and trainer.outcome is None)
        return Capacity(2, SLOTS, max(0, SLOTS - held))

    def warm(self, trainers: int, workers: int) -> None:
        return

    def demand(self, workers: int) -> None:
        return

    def start(self, plan: Any, attempt: int, workers: int, most: int, idle_cores: bool) -> SimulatedHandle:
        world = self.world
        with world.call(self.controller):
            if self.controller.disk.seen is not None:
                raise Violation(f"{plan.job_id} is started, though: {self.controller.disk.seen}")
            if world.trouble_with(0.05):
                raise TrainerLost(plan.job_id, attempt)  # the message was dropped
            trainer = SimulatedTrainer(world, plan.job_id, attempt, workers)
            world.trainers.append(trainer)
            if world.trouble_with(0.05):  # it came, and its answer was lost: whoever waited for that has killed it
                trainer.alive = False
                raise TrainerLost(plan.job_id, attempt)
            return SimulatedHandle(self.controller, trainer)

    def running(self) -> list[SimulatedHandle]:
        return [SimulatedHandle(self.controller, trainer) for trainer in self.world.trainers if trainer.alive]

    def kill(self, handle: SimulatedHandle) -> None:
        with self.world.call(self.controller):
            handle.trainer.alive = False

    release = kill  # nobody waits in a pool here


class Mlflow:
    """Registers a job's model once, however often it is asked; may be down, and may be so right after it has."""

    def __init__(self, world: "World") -> None:
        self.world = world

    def register(self, run: RunReference, registration: Any) -> int:
        if self.world.trouble_with(0.2):
            raise TrackingDown("register", "down")
        version = self.world.versions.setdefault(run.run_id, len(self.world.versions) + 1)
        if self.world.trouble_with(0.2):
            raise TrackingDown("register", "the answer is lost")
        return version

    def end_run(self, run_id: str, status: str, finished_at: float) -> None:
        if self.world.trouble_with(0.1):
            raise TrackingDown("end_run", "down")
