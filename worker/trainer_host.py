"""The process around trainers: runs one job's loop in a thread, answers polls, and turns how it ended into a report."""

import errno
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable

from core.errors import CoreError
from worker.dataset import DatasetError
from worker.errors import Cancelled, Diverged, Orphaned, Paused, RemoteLost, TooManyFailures, WarmStartDamaged
from worker.plan import TrainerReport, TrainingFailure, TrainingPlan, TrainingResult
from worker.recorder import Recorder
from worker.trainer import OpenExchange, Trainer

log = logging.getLogger(__name__)
DIVERGENCE_HINT = "lower optimizer.learning_rate, or set optimizer.clip_norm (1.0 is a good start)"
SAVED_LOOK_S = 0.05  # how often who waits for a checkpoint looks whether the run has ended


class Run:
    """One attempt at one job, in a thread of its own.

    `open_exchange` gets the recorder, and what to call while it waits: it raises when the job is to end.
    `abandoned` is called when it ends without an outcome: nobody polls it any more, or its aggregator is lost.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        attempt: int,
        workers: int,
        open_exchange: Callable[[Recorder, Callable[[], None]], OpenExchange],
        orphan_seconds: float,
        abandoned: Callable[[], None],
    ) -> None:
        self.job_id, self.attempt = plan.job_id, attempt
        self._recorder, self._abandoned = Recorder(workers), abandoned
        opened = open_exchange(self._recorder, lambda: self._trainer.look_around())
        self._trainer = Trainer(plan, self._recorder, opened, orphan_seconds, attempt=attempt)
        self._outcome: str | None = None
        self._result: TrainingResult | None = None
        self._failure: TrainingFailure | None = None
        threading.Thread(target=self._run, name=f"train-{plan.job_id}", daemon=True).start()

    def poll(self, acknowledged: int) -> TrainerReport:
        """Where it stands, and what has not been acknowledged yet."""
        outcome = self._outcome  # read first: what is recorded before the end is then in the report that tells of it
        progress, metrics, first, updates = self._recorder.read(acknowledged)
        return TrainerReport(
            self.job_id, self.attempt, progress, metrics, first, updates, outcome, self._result, self._failure
        )

    def cancel(self) -> None:
        """Ask it to end as `cancelled`."""
        self._trainer.cancel()

    def pause(self) -> None:
        """Ask it to write a checkpoint and end as `paused`."""
        self._trainer.pause()

    def save(self, seconds: float) -> None:
        """Have a checkpoint written; returns when it is on the disk, the run has ended, or after `seconds`."""
        saved, until = self._trainer.save(), time.monotonic() + seconds
        while self._outcome is None and time.monotonic() < until and not saved.wait(SAVED_LOOK_S):
            continue

    def scale(self, workers: int) -> None:
        """Ask it to go on with so many workers. Raises ValueError for less than one."""
        self._trainer.scale(workers)

    def _run(self) -> None:
        try:
            self._result = self._trainer.run()
            self._outcome = "succeeded"
        except Cancelled:
            self._outcome = "cancelled"
        except Paused:
            self._outcome = "paused"
        except (Orphaned, RemoteLost) as error:
            # Nobody to report to, or nothing left to go on with: whoever asks again finds the trainer lost.
            log.warning("%s attempt %d: %s", self.job_id, self.attempt, error)
            self._abandoned()
        except Exception as error:
            self._failure = failure_of(error)
            self._outcome = "failed"


def failure_of(error: Exception) -> TrainingFailure:
    """Why a job failed, in words for its user; what nobody foresaw gets an id that the log carries."""
    if isinstance(error, Diverged):
        details = {"step": error.step, "shard": error.shard, "hint": DIVERGENCE_HINT, "last_good_step": error.step - 1}
        return TrainingFailure("diverged", f"{error}; {DIVERGENCE_HINT}", details)
    if isinstance(error, TooManyFailures):
        return TrainingFailure("worker_failures", str(error), {"failures": error.failures})
    if isinstance(error, CoreError | DatasetError):
        return TrainingFailure("invalid_dataset", str(error), {})
    if isinstance(error, WarmStartDamaged):
        return TrainingFailure("invalid_warm_start", f"{error}; submit the job again", {})
    if isinstance(error, MemoryError):
        return TrainingFailure("out_of_memory", str(error) or "the trainer's memory does not suffice", {})
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return TrainingFailure("disk_full", str(error), {})
    number = uuid.uuid4().hex[:12]
    log.error("failure %s in process %d", number, os.getpid(), exc_info=error)
    return TrainingFailure("internal", f"an unexpected error; the logs tell more under {number}", {"id": number})
