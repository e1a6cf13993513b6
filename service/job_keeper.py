"""The jobs under this controller's lease: each is started, asked, recorded and ended, once a turn of the loop.

Nothing is kept here that the store or the cluster does not know, but for how far each trainer has been heard. A job
that has lost its trainer is let go: its lease ends, and whoever claims it next starts it again from the beginning,
under a new epoch. The weights come out the same, and of each metric point the first write stays.
"""

import logging
import time
import uuid
from collections import Counter
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from service import reconcile, reports
from service.artifacts import ArtifactStore
from service.errors import LeaseLost
from service.planning import training_plan
from service.records import JobRecord, Json, NewEvent
from service.settings import Settings
from service.store import Store
from worker.cluster import Cluster, TrainerHandle
from worker.errors import ClusterLost, TrainerLost
from worker.plan import TrainerReport

log = logging.getLogger(__name__)
LEASE_SECONDS = 30.0
RENEW_SECONDS = 5.0
ASK_SECONDS, RECORD_SECONDS = 0.25, 0.5  # each record is a write to the disk, and the API's writes wait for it
CLAIM_SECONDS = 1.0
METRIC_EVENT_SECONDS = 2.0
WARM_WORKERS = 4
ALL_EVENTS = 1_000_000


@dataclass
class Held:
    """A job whose trainer runs: how far it has been heard, and when it was written about last."""

    handle: TrainerHandle
    acknowledged: int = 0
    asked_at: float = 0.0
    recorded_at: float = 0.0
    metric_event_at: float = 0.0
    cancelled: bool = False


class JobKeeper:
    """One controller's jobs. Raises `ClusterLost` when Ray is gone: the process should end then."""

    def __init__(
        self, store: Store, cluster: Cluster, artifacts: ArtifactStore, settings: Settings, owner: str
    ) -> None:
        self.store, self.cluster, self.artifacts, self.settings, self.owner = store, cluster, artifacts, settings, owner
        self.held: dict[str, Held] = {}
        self.waiting: set[str] = set()  # claimed here, not started yet for want of slots
        self.losses: Counter[str] = Counter()
        self._renewed_at = 0.0
        self._claimed_at, self._claimed_number = 0.0, -1

    def adopt(self) -> None:
        """Takes over what an earlier controller of this home has left: call it once, before the first turn."""
        ours = {job.id: job for job in self.store.leased_jobs(self.owner) if job.result is None}
        for handle in self.cluster.running():
            job = ours.get(handle.job_id)
            if job is None or job.lease_epoch != handle.attempt:
                self.cluster.kill(handle)
                continue
            heard = reports.last_update(self.store.events_after(job.id, 0, ALL_EVENTS), handle.attempt)
            self.held[job.id] = Held(handle, acknowledged=heard)
            log.info("%s goes on, heard up to update %d", job.id, heard)
        for job in ours.values():
            if job.id not in self.held:
                self._let_go(job, "the trainer was lost while no controller ran")

    def turn(self) -> None:
        """One look at every job, then claims while there is room."""
        jobs = {job.id: job for job in self.store.leased_jobs(self.owner)}
        self._renew(jobs)
        for job_id in self.held.keys() - jobs.keys():
            self._drop(job_id)  # somebody else's by now, or ended by somebody else
        self.waiting &= jobs.keys()
        for job in jobs.values():
            if job.id in self.held or job.id in self.waiting:
                self._guarded(job)
        self._claim()

    # One job. Each method writes under the job's epoch; LeaseLost from any of them drops the job.

    def _guarded(self, job: JobRecord) -> None:
        """A look at one job. What nobody foresaw fails that job alone, with an id that the log carries."""
        try:
            if job.id in self.held:
                self._ask(job, self.held[job.id])
            else:
                self._start(job)
        except LeaseLost as error:
            log.warning("%s", error)
            self._drop(job.id)
        except TrainerLost as error:
            self._lost(job, error)
        except (ClusterLost, SQLAlchemyError):
            raise
        except Exception as error:
            number = uuid.uuid4().hex[:12]
            log.error("failure %s of %s", number, job.id, exc_info=error)
            message = f"an unexpected error; the controller's log tells more under {number}"
            self._fail(job, {"code": "internal", "message": message, "id": number})

    def _start(self, job: JobRecord) -> None:
        epoch = job.lease_epoch
        if job.cancel_requested:
            self.waiting.discard(job.id)
            self.store.finish_job(job.id, epoch, "cancelled")
            return
        capacity = self.cluster.capacity()
        wanted, shards = job.spec["distribution"]["workers"], job.spec["distribution"]["shards"]
        free = capacity.free_worker_slots
        workers = reconcile.workers_for(wanted, shards, capacity.worker_slots, free, capacity.cpus)
        if workers is None:
            self.waiting.add(job.id)
            self.store.set_status_reason(job.id, epoch, "waiting for free worker slots")
            return
        plan = training_plan(job, self.store.get_dataset(job.dataset_id), self.settings)
        self.waiting.discard(job.id)
        self.held[job.id] = Held(self.cluster.start(plan, epoch, workers))
        message = f"training starts; workers: {workers}, data shards: {shards}"
        event = NewEvent("log", "info", message, {"workers": workers, "shards": shards})
        progress = reports.starting(workers, plan.epochs, job.plan["steps"])
        self.store.set_progress(job.id, epoch, progress, events=[event])
        if job.status_reason is not None:
            self.store.set_status_reason(job.id, epoch, None)

    def _ask(self, job: JobRecord, held: Held) -> None:
        if job.cancel_requested and not held.cancelled:
            held.handle.cancel()
            held.cancelled = True
        now = time.monotonic()
        if now - held.asked_at < ASK_SECONDS:
            return
        held.asked_at = now
        report = held.handle.poll(held.acknowledged)
        if report.outcome is None and now - held.recorded_at < RECORD_SECONDS:
            return
        held.recorded_at = now
        self._record(job, held, report)
        if report.outcome == "succeeded":
            self._succeed(job, report)
        elif report.outcome == "failed":
            assert report.failure is not None
            self._fail(job, reports.error_of(report.failure))
        elif report.outcome == "cancelled":
            self.store.finish_job(job.id, job.lease_epoch, "cancelled")
            self._release(job.id)

    def _record(self, job: JobRecord, held: Held, report: TrainerReport) -> None:
        """Writes what is new of it, in one transaction; only then is the trainer told that it was heard."""
        progress, points, events = reports.progress_of(report), reports.points_of(report), reports.events_of(report)
        if points and (report.outcome or time.monotonic() - held.metric_event_at > METRIC_EVENT_SECONDS):
            events.append(reports.metric_event(report))
            held.metric_event_at = time.monotonic()
        if progress != job.progress or report.updates:
            final = {} if report.result is None else report.result.metrics  # the registered weights', not the last
            metrics = reports.finite({**report.metrics, **final})
            self.store.set_progress(job.id, job.lease_epoch, progress, points, events, metrics)
        held.acknowledged = reports.last_number(report)

    def _succeed(self, job: JobRecord, report: TrainerReport) -> None:
        """Keeps the model's files, then says so: from here on the job is the publisher's."""
        result = report.result
        assert result is not None
        sha256 = self.artifacts.put(result.files)
        metadata = reports.model_metadata_of(result)
        self.store.set_result(job.id, job.lease_epoch, reports.result_of(result), sha256, metadata)
        self._release(job.id)

    def _fail(self, job: JobRecord, error: Json) -> None:
        try:
            self.store.finish_job(job.id, job.lease_epoch, "failed", error)
        except LeaseLost as lost:
            log.warning("%s", lost)
        self.waiting.discard(job.id)
        self._release(job.id)

    def _lost(self, job: JobRecord, error: TrainerLost) -> None:
        self.losses[job.id] += job.id in self.held  # one that never came up says nothing about the job
        self._drop(job.id)
        self.cluster.running()  # a trainer lost at its very start is nobody's: this look gives its crew's slots back
        if reconcile.after_lost_trainer(self.losses[job.id]):
            self._let_go(job, str(error))
        else:
            message = f"the trainer was lost {self.losses[job.id]} times"
            self._fail(job, {"code": "worker_failures", "message": message, "failures": self.losses[job.id]})

    def _let_go(self, job: JobRecord, why: str) -> None:
        """Ends the lease now, so that the job is claimed again under a new epoch."""
        message = f"{why}; the job starts again from the beginning"
        event = NewEvent("fault", "warning", message, {"attempt": job.lease_epoch})
        try:
            self.store.set_progress(job.id, job.lease_epoch, job.progress or {}, events=[event])
            self.store.renew_leases(self.owner, [job.id], 0.0)
        except LeaseLost as lost:
            log.warning("%s", lost)

    # All jobs.

    def _renew(self, jobs: dict[str, JobRecord]) -> None:
        """Not the leases of jobs that were let go: those are to be claimed again."""
        now = time.monotonic()
        if now - self._renewed_at > RENEW_SECONDS:
            ours = [id for id, job in jobs.items() if job.result or id in self.held or id in self.waiting]
            self.store.renew_leases(self.owner, ours, LEASE_SECONDS)
            self._renewed_at = now

    def _claim(self) -> None:
        """Claims when something has happened to any job since the last time, and once a second: leases run out."""
        number, now = self.store.last_event_number(), time.monotonic()
        if number == self._claimed_number and now - self._claimed_at < CLAIM_SECONDS:
            return
        self._claimed_number, self._claimed_at = number, now
        while True:
            capacity = self.cluster.capacity()
            self.cluster.warm(1, min(WARM_WORKERS, capacity.cpus, capacity.free_worker_slots))
            running = len(self.held) + len(self.waiting)
            limit, waiting = self.settings.max_running_jobs, len(self.waiting)
            if not reconcile.may_claim(running, limit, waiting, capacity.free_worker_slots):
                return
            job = self.store.claim_job(self.owner, LEASE_SECONDS)
            if job is None:
                return
            if job.result is None:  # else the publisher's: it was being registered when its lease ran out
                self._guarded(job)

    def _drop(self, job_id: str) -> None:
        """Ends the trainer of a job that is not ours any more."""
        held = self.held.pop(job_id, None)
        if held is not None:
            self.cluster.kill(held.handle)

    def _release(self, job_id: str) -> None:
        """Takes the actors of an ended job back into the pool, or ends them where that fails."""
        held = self.held.pop(job_id, None)
        if held is None:
            return
        try:
            self.cluster.release(held.handle)
        except ClusterLost:
            raise
        except Exception as error:  # the job's end is written: what fails now must not touch it
            log.error("the actors of %s do not come back to the pool", job_id, exc_info=error)
            self.cluster.kill(held.handle)
