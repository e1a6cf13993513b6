"""A trainer's side of checkpoints: from which one it goes on, when the next is due, and what is told of them."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worker.checkpoint import Checkpoint, CheckpointDescription, plan_digest
from worker.checkpoint_store import BrokenCheckpoint, CheckpointStore
from worker.checkpoint_writer import CheckpointWriter
from worker.errors import CheckpointRefused, CheckpointStorageError
from worker.exchange import Exchange
from worker.plan import TrainerEvent, TrainingPlan
from worker.recorder import LossLog, Recorder
from worker.stopping import StoppingState

_OVER = "the job starts again from step 0"


@dataclass
class Position:
    """How far a training has come, beside what its exchange, loss log and recorder hold."""

    step: int = 0  # the last committed one
    epoch: int = 0  # the last one that was finished, its evaluation and stopping decision included
    stopping: StoppingState = field(default_factory=StoppingState)
    stopped: str | None = None  # why no further step follows
    worker_failures: int = 0  # in earlier attempts
    seconds: float = 0.0  # trained in earlier attempts


class Checkpointing:
    """The checkpoints of one attempt at `plan`; of a plan without a folder for them there are none.

    A disk that does not take one is told of, and training goes on: the earlier ones stay usable. What else goes wrong
    with a write is raised by a later call.
    """

    def __init__(
        self, plan: TrainingPlan, attempt: int, recorder: Recorder, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._plan, self._attempt, self._recorder, self._clock = plan, attempt, recorder, clock
        self._store = None if plan.checkpoint_folder is None else CheckpointStore(plan.checkpoint_folder)
        self._writer = None if self._store is None else CheckpointWriter(self._store, self._saved)
        self._digest = plan_digest(plan)
        self._handed_at = 0.0
        self._trouble: str | None = None  # what was told last, so that a full disk is not told of at each try

    def resume(self, exchange: Exchange) -> Checkpoint | None:
        """The checkpoint to go on from: its state is in `exchange` now, its points are to be heard again.

        None: there is none that can be used, and training begins at its first step; events say why.
        """
        self._handed_at = self._clock()
        found = None if self._store is None else self._find(self._store, exchange.numerics)
        if found is not None:
            exchange.restore(found.step, np.concatenate([found.parameters[None], found.optimizer_state]), found.best)
            self._recorder.say_again(found.points, found.latest)
            data = {"step": found.step, "epoch": found.epoch, "written_by_attempt": found.attempt}
            self._say("checkpoint", "info", f"goes on from the checkpoint of step {found.step}", data)
        return found

    def is_due(self) -> bool:
        """Whether `checkpoint_every_seconds` have gone by."""
        every = self._plan.checkpoint_every_seconds
        return self._writer is not None and self._clock() - self._handed_at >= every

    def write(self, exchange: Exchange, at: Position, losses: LossLog, seconds: float, wait: bool = False) -> None:
        """Have a checkpoint of this moment written, beside training or, with `wait`, before this returns.

        The exchange is between two steps. `seconds`: trained so far, over all attempts.
        """
        if self._writer is None or at.step == 0:
            return
        self._handed_at = self._clock()
        try:
            self._writer.write(self._take(exchange, at, losses, seconds))
            if wait:
                self._writer.flush()
        except CheckpointStorageError as error:
            self._tell_trouble(error)

    def close(self) -> None:
        """Wait for the write in flight; nothing is written afterwards."""
        if self._writer is not None:
            try:
                self._writer.close()
            except CheckpointStorageError as error:
                self._tell_trouble(error)

    def _take(self, exchange: Exchange, at: Position, losses: LossLog, seconds: float) -> Checkpoint:
        state, (points, latest), (loss, weight) = exchange.snapshot(), self._recorder.unheard(), losses.sums
        return Checkpoint(
            job_id=self._plan.job_id,
            attempt=self._attempt,
            plan_sha256=self._digest,
            numerics=exchange.numerics,
            step=at.step,
            epoch=at.epoch,
            parameters=state[0],
            optimizer_state=state[1:],
            best=None if at.stopping.best_epoch is None else exchange.parameters("best"),
            stopping=at.stopping,
            stopped=at.stopped,
            loss_sum=loss,
            weight_sum=weight,
            points=points,
            latest=latest,
            worker_failures=at.worker_failures + exchange.failures,
            seconds=seconds,
        )

    def _find(self, store: CheckpointStore, numerics: str) -> Checkpoint | None:
        broken: list[BrokenCheckpoint] = []

        def tell(one: BrokenCheckpoint) -> None:
            broken.append(one)
            message = f"the checkpoint of step {one.step} is broken ({one.reason}); it is kept as {one.path}"
            self._say("fault", "warning", message, {"step": one.step, "reason": one.reason, "path": one.path})

        try:
            try:
                found = store.newest_valid(self._digest, tell)
            except CheckpointRefused as error:
                self._start_over(store, error.reason)
                return None
            if found is not None and found.numerics != numerics:
                reason = f"the workers compute other bits ({numerics}) than those before ({found.numerics})"
                self._start_over(store, reason)
                return None
        except CheckpointStorageError as error:
            self._say("fault", "error", f"{error}; {_OVER}", {"path": error.path})
            return None
        if found is None and broken:
            message = f"no checkpoint is whole: {_OVER}"
            self._say("fault", "error", message, {"broken": [one.step for one in broken]})
        elif found is None and self._attempt > 1:
            self._say("checkpoint", "info", "there is no checkpoint yet: training begins at step 0", {"step": 0})
        return found

    def _start_over(self, store: CheckpointStore, reason: str) -> None:
        """None of those there are belongs to this training: out of the way of those to come, which have lower steps."""
        self._say("fault", "error", f"the checkpoints cannot be used: {reason}; {_OVER}", {"reason": reason})
        store.set_all_aside(reason)

    def _saved(self, description: CheckpointDescription) -> None:
        """In the writing thread."""
        self._trouble = None
        ms, size = round(1000 * description.seconds), description.bytes
        data = {"step": description.step, "epoch": description.epoch, "bytes": size, "ms": ms}
        message = f"checkpoint of step {description.step}: {size / 1e6:.1f} MB in {ms} ms"
        self._say("checkpoint", "info", message, data | {"sha256": description.sha256})

    def _tell_trouble(self, error: CheckpointStorageError) -> None:
        if str(error) != self._trouble:
            self._trouble = str(error)
            message = f"{error}; training goes on, the earlier checkpoints stay"
            self._say("fault", "warning", message, {"path": error.path, "errno": error.code})

    def _say(self, kind: str, level: str, message: str, data: dict[str, Any]) -> None:
        self._recorder.event(TrainerEvent(kind, level, message, data, time.time()))
