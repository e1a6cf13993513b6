"""A job whose trainer runs: how far it has been heard, and what it says, written into the store.

Each write is under the job's epoch: LeaseLost where another controller has the job by now.
"""

import math
from collections.abc import Callable

from service import disk, reports
from service.artifacts import ArtifactStore
from service.job_events import Effect
from service.records import JobRecord
from service.store import Store
from worker.cluster import TrainerHandle
from worker.plan import TrainerReport, TrainingResult

ASK_SECONDS, RECORD_SECONDS = 0.25, 0.5  # each record is a write to the disk, and the API's writes wait for it
METRIC_EVENT_SECONDS = 2.0
ALL_EVENTS = 1_000_000


class HeldJob:
    """One of this controller's jobs, with its trainer. TrainerLost from whatever asks that, where it is gone."""

    def __init__(self, store: Store, handle: TrainerHandle, clock: Callable[[], float]) -> None:
        self.handle = handle
        self._store, self._clock = store, clock
        self._acknowledged = 0  # the number of the trainer's last update that the store has
        self._asked_at = self._recorded_at = self._metric_event_at = -math.inf
        self._scaled_to: int | None = None

    def catch_up(self) -> int:
        """Hear on after what the store has of this trainer, whoever has written it; returns that update's number."""
        events = self._store.events_after(self.handle.job_id, 0, ALL_EVENTS)
        self._acknowledged = reports.last_update(events, self.handle.attempt)
        return self._acknowledged

    def comes_due(self) -> bool:
        """Whether it is time to look at it again; if so, the next time is ASK_SECONDS from now."""
        now = self._clock()
        if now - self._asked_at < ASK_SECONDS:
            return False
        self._asked_at = now
        return True

    def poll(self) -> TrainerReport:
        """What its trainer says, and will say again."""
        return self.handle.poll(self._acknowledged)

    def ask(self, job: JobRecord) -> TrainerReport | None:
        """What its trainer says, once that is written; None: it is not time yet to write."""
        report = self.poll()
        if report.outcome is None and self._clock() - self._recorded_at < RECORD_SECONDS:
            return None
        self._recorded_at = self._clock()
        self._record(job, report)
        return report

    def scale(self, job: JobRecord) -> None:
        """To the workers that were asked for; once each trainer: asked again it would do nothing."""
        if self._scaled_to != job.workers_requested and job.workers_requested is not None:
            self.handle.scale(job.workers_requested)
            self._scaled_to = job.workers_requested

    def keep(self, job: JobRecord, result: TrainingResult, artifacts: ArtifactStore) -> tuple[Effect, ...]:
        """Keep the model's files, then say so: from here on the job is the publisher's. Its trainer keeps them until
        then, so that they can wait for room on the disk. What is to be done then."""
        sha256 = artifacts.put_if_room(result.files)
        if sha256 is None:
            size = disk.in_mb(sum(map(len, result.files.values())))
            reason = f"{disk.WAITING} at {artifacts.root}: the trained network takes {size}"
            if job.status_reason != reason:
                self._store.set_status_reason(job.id, job.lease_epoch, reason)
            return ()
        metadata = reports.model_metadata_of(result)
        return self._store.set_result(job.id, job.lease_epoch, reports.result_of(result), sha256, metadata)[1]

    def _record(self, job: JobRecord, report: TrainerReport) -> None:
        """What is new of it, in one transaction; only then is the trainer told that it was heard."""
        progress, points, events = reports.progress_of(report), reports.points_of(report), reports.events_of(report)
        if points and (report.outcome or self._clock() - self._metric_event_at > METRIC_EVENT_SECONDS):
            events.append(reports.metric_event(report))
            self._metric_event_at = self._clock()
        if progress != job.progress or report.updates:
            final = {} if report.result is None else report.result.metrics  # the registered weights', not the last
            metrics = reports.finite({**report.metrics, **final})
            self._store.set_progress(job.id, job.lease_epoch, progress, points, events, metrics)
        self._acknowledged = reports.last_number(report)
