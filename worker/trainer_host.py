"""The process around trainers: runs one job's loop in a thread, answers polls, and turns how it ended into a report."""

import errno
import gc
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from core.errors import CoreError
from worker import shared_memory
from worker.crew import Crew as Members
from worker.dataset import DatasetError
from worker.errors import (
    Cancelled,
    Diverged,
    LinkBroken,
    Orphaned,
    Paused,
    RemoteLost,
    TooManyFailures,
    WarmStartDamaged,
)
from worker.exchange import Exchange
from worker.fetched import read_chunk
from worker.object_exchange import ObjectExchange
from worker.plan import StepPlan, TrainerEvent, TrainerReport, TrainingFailure, TrainingPlan, TrainingResult
from worker.pool import Crew
from worker.recorder import Recorder
from worker.shared_memory import SharedMemoryExchange
from worker.socket_exchange import SocketExchange
from worker.trainer import OpenExchange, Trainer
from worker.transport import Remote, Transport

log = logging.getLogger(__name__)
DIVERGENCE_HINT = "lower optimizer.learning_rate, or set optimizer.clip_norm (1.0 is a good start)"
AUTO, LINKS, OBJECTS = "auto", "links", "objects"  # exchanges: shared memory if it can be, sockets, references
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


class Connection(Transport, Protocol):
    """A trainer's way to the other processes of its job."""

    def remote(self, name: str) -> Remote:
        """The process of that name. RemoteLost: there is none."""

    def forget_leavers(self) -> None:
        """Those that have detached by now are no workers of this trainer any more."""


class TrainerHost:
    """The process in which a trainer runs, one job after the other."""

    def __init__(self, connect: Callable[[Crew, list[str]], Connection], kill: Callable[[str], None]) -> None:
        """`connect` gets the crew, and the list of its workers to be kept up to date; `kill` a name."""
        self._connect, self._kill = connect, kill
        self._run: Run | None = None
        self._crew: Crew | None = None
        self._workers: list[str] = []
        self._connection: Connection | None = None

    def start(
        self, plan: TrainingPlan, attempt: int, crew: Crew, workers: int, orphan_seconds: float, exchange: str
    ) -> None:
        """Begin; returns at once. `workers`: how many are wanted, of whom the crew may lack some."""
        self._crew, self._workers = crew, list(crew.workers)
        connection = self._connection = self._connect(crew, self._workers)

        def open_exchange(recorder: Recorder, look: Callable[[], None]) -> OpenExchange:
            def opened(steps: StepPlan, seed: int) -> Exchange:
                remotes = [connection.remote(name) for name in crew.workers]
                members = Members(steps, remotes, connection, recorder.event, look=look, wanted=workers)
                members.admit(wait=True)
                if exchange == AUTO and shared_memory.suits(steps, members):
                    return SharedMemoryExchange(steps, seed, members, connection)
                aggregators = members.alike([connection.remote(name) for name in crew.aggregators])
                if exchange != OBJECTS:
                    try:
                        return SocketExchange(steps, seed, members, aggregators, connection)
                    except LinkBroken as error:
                        recorder.event(unlinked(error))
                return ObjectExchange(steps, seed, members, aggregators, connection)

            return opened

        self._run = Run(plan, attempt, workers, open_exchange, orphan_seconds, self._abandon)

    def poll(self, acknowledged: int) -> tuple[TrainerReport, tuple[str, ...]] | None:
        """The report, and the workers by now; None when no job has been started here."""
        if self._run is None or self._connection is None:
            return None
        self._connection.forget_leavers()
        return self._run.poll(acknowledged), tuple(self._workers)

    def cancel(self) -> None:
        """Ask the job to end."""
        if self._run is not None:
            self._run.cancel()

    def pause(self) -> None:
        """Ask the job to write a checkpoint and end."""
        if self._run is not None:
            self._run.pause()

    def save(self, seconds: float) -> None:
        """Have the job write a checkpoint, and go on; waits for it, at most `seconds`."""
        if self._run is not None:
            self._run.save(seconds)

    def scale(self, workers: int) -> None:
        """Ask the job to go on with so many workers."""
        if self._run is not None:
            self._run.scale(workers)

    def chunk(self, folder: str, name: str, offset: int) -> bytes:
        """A part of the job's prepared arrays, for a node that has not got them (worker.fetched.read_chunk)."""
        return read_chunk(folder, name, offset)

    def describe(self) -> tuple[str, int, Crew] | None:
        """Job, attempt and crew, workers recruited since included; None when no job has been started here."""
        if self._run is None or self._crew is None:
            return None
        return self._run.job_id, self._run.attempt, replace(self._crew, workers=tuple(self._workers))

    def reset(self) -> None:
        """Forget the job, which has ended, and give its memory back."""
        self._run = self._crew = self._connection = None
        self._workers = []
        gc.collect()  # a failure's traceback refers to itself, and to the job's segment

    def _abandon(self) -> None:
        """The job ends without an outcome: end the crew, and this process with it."""
        assert self._crew is not None
        for name in (*self._workers, *self._crew.aggregators):
            self._kill(name)
        os._exit(1)


def unlinked(error: LinkBroken) -> TrainerEvent:
    """The event of a job whose processes cannot be linked."""
    message = f"gradients travel through Ray's object store, which takes many times as long: {error}"
    return TrainerEvent("log", "warning", message, {"peer": error.peer, "reason": error.reason}, time.time())


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
