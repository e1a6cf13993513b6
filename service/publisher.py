"""Tells MLflow what the store holds, and registers models there: the outbox's one reader, and the one registrar.

A thread of the controller, and the only one that waits for MLflow: however long MLflow hangs, jobs train on. Every step
is repeatable, so that a pass that broke off anywhere is simply made again: what MLflow has already it does not get
twice, and the store is told only after MLflow was.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from service import disk, registrar
from service.artifacts import ArtifactStore
from service.errors import LeadLost, LeaseLost, StoreUnavailable
from service.job_state import FINAL, RUNNING
from service.parts import Part
from service.records import JobRecord, ModelRecord
from service.store import Store
from service.tracked import (
    Registration,
    RunDescription,
    RunReference,
    TrackedPoint,
    TrackingDown,
    TrackingError,
    TrackingRefused,
)

log = logging.getLogger(__name__)
PASS_SECONDS = 0.3
POINTS_SECONDS = 1.0
ALIAS_SECONDS = 3.0
AWAY_SECONDS = 1.0  # between two tries to write into a store that is full or locked
START_SECONDS = 60.0  # how long an MLflow that was never seen yet counts as starting
WAITING, REFUSES = "waiting for MLflow since", "MLflow refuses"
POINTS_PER_CALL = 1000


class MlflowServer(Protocol):
    """What the publisher needs of `service.tracking.Tracking`."""

    def check(self) -> None: ...
    def start_run(self, description: RunDescription) -> RunReference: ...
    def log_points(self, run_id: str, points: list[TrackedPoint]) -> None: ...
    def end_run(self, run_id: str, status: str, finished_at: float) -> None: ...
    def register(self, run: RunReference, registration: Registration) -> int: ...
    def set_production(self, name: str, version: int | None) -> None: ...
    def production(self, names: list[str]) -> dict[str, int | None]: ...


class Publisher(threading.Thread):
    """The thread. `part` says how MLflow is doing; a thread that is not alive any more has met a bug, and logged it."""

    def __init__(
        self,
        store: Store,
        artifacts: ArtifactStore,
        connect: Callable[[], MlflowServer],
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        """`store`: one that refuses writes once another controller leads (`Store.led_by`), however long MLflow has kept
        this one waiting. `connect` is called in the thread: it imports MLflow, which takes seconds. While `leads` says
        no, another controller may be publishing: this one is silent towards MLflow then."""
        super().__init__(name="publisher", daemon=True)
        self.store, self.artifacts, self.connect, self.leads = store, artifacts, connect, leads
        self.part = Part("starting", time.time(), "not asked yet")
        self.stopping = threading.Event()
        self._aliases_at = 0.0
        self._passed_at = 0.0
        self._outages = 0
        self._given_up: set[str] = set()
        self._refused_aliases: set[tuple[str, int]] = set()  # model, number of the move

    def run(self) -> None:
        """Passes until `stopping` is set."""
        mlflow = self.connect()
        while not self.stopping.wait(PASS_SECONDS):
            try:
                self.once(mlflow)
            except (StoreUnavailable, LeadLost) as error:  # the next pass says it all again
                log.warning("%s", error)
                self.stopping.wait(AWAY_SECONDS)

    def once(self, mlflow: MlflowServer) -> None:
        """One pass over all that MLflow has not been told. An outage ends it; the next one starts with another job."""
        jobs = self.store.jobs_to_publish()
        if not self.leads() or not self._is_due(jobs):
            return
        first = self._outages % max(1, len(jobs))
        try:
            mlflow.check()
            for job in jobs[first:] + jobs[:first]:
                if job.id not in self._given_up and self.leads():
                    self._publish(mlflow, job)
            if self.leads() and (time.monotonic() - self._aliases_at > ALIAS_SECONDS or self._pending_aliases()):
                self._aliases(mlflow)
                self._aliases_at = time.monotonic()
            self._is("up")
        except TrackingError as error:  # it is away, or takes nothing of us at all: a key, a host name
            self._outages += 1
            self._is("down", str(error))
            since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.part.since))
            reason = f"{WAITING} {since}" if isinstance(error, TrackingDown) else f"{REFUSES}: {error.reason}"
            for job in jobs:
                if self.part.state == "down" or job.result is not None:  # one that trains need not know of a start
                    self._say(job, reason)

    def _is_due(self, jobs: list[JobRecord]) -> bool:
        """At once for a run's beginning and end, and for a move of `production`; once a second for points, and while
        MLflow is away; every few seconds to see whether it is there."""
        begins_or_ends = any(j.run_id is None or j.result is not None or j.status in FINAL for j in jobs)
        urgent = self.part.state == "up" and (begins_or_ends or bool(self._pending_aliases()))
        pause = 0.0 if urgent else POINTS_SECONDS if jobs or self.part.state != "up" else ALIAS_SECONDS
        if time.monotonic() - self._passed_at < pause:
            return False
        self._passed_at = time.monotonic()
        return True

    def _is(self, state: str, detail: str = "") -> None:
        if state == "down" and self.part.state == "starting" and time.time() - self.part.since < START_SECONDS:
            state = "starting"
        if self.part.state != state:
            log.log(logging.INFO if state == "up" else logging.WARNING, "MLflow is %s %s", state, detail)
            self.part = Part(state, time.time(), detail[:200])

    def _say(self, job: JobRecord, reason: str | None) -> None:
        """Why the job waits, of those that have news for MLflow: others may wait for something else. One that waits
        for the disk goes on saying so."""
        has_news = job.result is not None or job.published_seq < job.point_count
        if (job.status_reason or "").startswith(disk.WAITING):
            return
        if job.status != RUNNING or (reason is None and not (job.status_reason or "").startswith((WAITING, REFUSES))):
            return
        if reason is None or has_news:
            try:
                self.store.set_status_reason(job.id, job.lease_epoch, reason)
            except LeaseLost as lost:
                log.info("%s", lost)

    def _publish(self, mlflow: MlflowServer, job: JobRecord) -> None:
        """Run, points, model, end: each as far as the job is. What is wrong with one job is no matter to the others."""
        try:
            self._tell(mlflow, job)
        except (TrackingDown, StoreUnavailable, LeadLost, SQLAlchemyError):
            raise
        except LeaseLost as lost:
            log.info("%s", lost)
        except TrackingRefused as error:
            if job.status_reason != (reason := f"{REFUSES}: {error.reason}"):
                log.error("%s: %s", job.id, error)
                self._say(job, reason)
        except Exception as error:
            self._give_up(job, error)

    def _tell(self, mlflow: MlflowServer, job: JobRecord) -> None:
        run = self._run(mlflow, job)
        self._points(mlflow, job, run)
        self._say(job, None)
        if job.status == RUNNING and job.result is not None:
            registrar.finish(self.store, self.artifacts, mlflow, self.store.get_job(job.id), run)
            return
        if job.status in FINAL and not job.run_ended:
            mlflow.end_run(run.run_id, job.status, job.finished_at or time.time())
            self.store.mark_run_ended(job.id)

    def _give_up(self, job: JobRecord, error: Exception) -> None:
        """What nobody foresaw: the log has it under an id, and a job that was to be registered fails with that."""
        number = uuid.uuid4().hex[:12]
        log.error("failure %s of %s", number, job.id, exc_info=error)
        self._given_up.add(job.id)
        if job.status == RUNNING and job.result is not None:
            message = f"the model cannot be registered; the controller's log tells more under {number}"
            error_fields = {"code": "internal", "message": message, "id": number}
            self.store.finish_job(job.id, job.lease_epoch, "failed", error_fields)

    def _run(self, mlflow: MlflowServer, job: JobRecord) -> RunReference:
        if job.run_id is not None and job.experiment_id is not None:
            return RunReference(job.run_id, job.experiment_id)
        run = mlflow.start_run(registrar.describe(self.store, job))
        self.store.set_run(job.id, run.run_id, run.experiment_id)
        return run

    def _points(self, mlflow: MlflowServer, job: JobRecord, run: RunReference) -> None:
        while points := self.store.unpublished_points(job.id, POINTS_PER_CALL):
            mlflow.log_points(run.run_id, [TrackedPoint(p.series, p.step, p.value, p.timestamp) for p in points])
            self.store.mark_published(job.id, points[-1].seq)

    def _pending_aliases(self) -> list[ModelRecord]:
        pending = self.store.pending_aliases()
        return [model for model in pending if (model.name, model.deployment_number) not in self._refused_aliases]

    def _aliases(self, mlflow: MlflowServer) -> None:
        """`production` as the store has it goes to MLflow; where somebody moved it in MLflow, the store follows."""
        for model in self._pending_aliases():
            try:
                mlflow.set_production(model.name, model.production_version)
                self.store.set_alias_synced(model.name, model.deployment_number)
            except TrackingRefused as error:  # a version that was deleted there, say; the next move is tried again
                log.error("%s: %s", model.name, error)
                self._refused_aliases.add((model.name, model.deployment_number))
        names = [model.name for model in self.store.all_models()]
        for name, version in mlflow.production(names).items():
            if (moved := self.store.alias_moved(name, version)) is not None:
                log.info("production of %s was moved to version %s in MLflow", name, moved.production_version)
