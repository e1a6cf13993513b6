"""Jobs in the store, as controllers see them: claimed under a lease, moved on, ended. Every write carries the epoch.

A controller that was stopped for longer than its lease finds that its epoch is an old one, and writes nothing more.
"""

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, and_, or_, select, update

from service.database import Database, record
from service.errors import LeaseLost
from service.job_state import FINAL, QUEUED, RUNNING
from service.records import JobRecord, Json, NewEvent
from service.store_events import NewPoint, add_events, add_points
from service.store_jobs import change_status, get_job
from service.tables import jobs


class LeaseStore:
    """Statements over jobs on behalf of controllers. A stale epoch raises LeaseLost, and nothing is written."""

    database: Database

    def claim_job(self, owner: str, lease_seconds: float) -> JobRecord | None:
        """The oldest job that waits, or whose lease has run out, now under a lease of `owner` with the next epoch."""
        now = time.time()
        expired = and_(jobs.c.status == RUNNING, or_(jobs.c.lease_expires_at.is_(None), jobs.c.lease_expires_at < now))
        with self.database.write() as connection:
            query = select(jobs).where(or_(expired, jobs.c.status == QUEUED)).order_by(jobs.c.number).limit(1)
            row = connection.execute(query).first()
            if row is None:
                return None
            job = record(JobRecord, row)
            taken = connection.execute(
                update(jobs)
                .where(jobs.c.id == job.id, jobs.c.status == job.status, jobs.c.lease_epoch == job.lease_epoch)
                .values(lease_owner=owner, lease_epoch=job.lease_epoch + 1, lease_expires_at=now + lease_seconds)
            )
            if taken.rowcount != 1:
                return None
            if job.status == QUEUED:
                change_status(connection, job, RUNNING, "started")
                connection.execute(update(jobs).where(jobs.c.id == job.id).values(started_at=now))
            return get_job(connection, job.id)

    def renew_leases(self, owner: str, job_ids: Sequence[str], lease_seconds: float) -> None:
        """Push the end of the owner's leases on those jobs out."""
        with self.database.write() as connection:
            connection.execute(
                update(jobs)
                .where(jobs.c.id.in_(job_ids), jobs.c.lease_owner == owner, jobs.c.status == RUNNING)
                .values(lease_expires_at=time.time() + lease_seconds)
            )

    def leased_jobs(self, owner: str) -> list[JobRecord]:
        """The running jobs under a lease of `owner`, oldest first."""
        query = select(jobs).where(jobs.c.lease_owner == owner, jobs.c.status == RUNNING).order_by(jobs.c.number)
        with self.database.read() as connection:
            return [record(JobRecord, row) for row in connection.execute(query)]

    def set_progress(
        self,
        job_id: str,
        epoch: int,
        progress: Json,
        points: Sequence[NewPoint] = (),
        events: Sequence[NewEvent] = (),
        metrics: dict[str, float | None] | None = None,
    ) -> None:
        """Progress, points, events and the latest metrics, in one transaction."""
        values: dict[str, Any] = {"progress": progress} | ({} if metrics is None else {"metrics": metrics})
        with self.database.write() as connection:
            _update(connection, job_id, epoch, values)
            add_points(connection, job_id, points)
            add_events(connection, job_id, events)

    def set_status_reason(self, job_id: str, epoch: int, reason: str | None) -> None:
        """Why the job waits, with a log event when that changes; None: it does not wait."""
        with self.database.write() as connection:
            before = _held(connection, job_id, epoch).status_reason
            if before == reason:
                return
            _update(connection, job_id, epoch, {"status_reason": reason})
            if reason is not None:
                add_events(connection, job_id, [NewEvent("log", "info", reason, {"status_reason": reason})])

    def set_result(
        self, job_id: str, epoch: int, result: Json, artifact_sha256: str, model_metadata: Json
    ) -> JobRecord:
        """What training gave: the job is `registering` from now on. Written once; later calls change nothing."""
        with self.database.write() as connection:
            job = _held(connection, job_id, epoch)
            if job.result is None:
                values = {"result": result, "artifact_sha256": artifact_sha256, "model_metadata": model_metadata}
                progress = {**(job.progress or {}), "phase": "registering", "eta_seconds": None}
                _update(connection, job_id, epoch, {**values, "progress": progress})
            return get_job(connection, job_id)

    def finish_job(self, job_id: str, epoch: int, status: str, error: Json | None = None) -> JobRecord:
        """The job's end, with its event."""
        with self.database.write() as connection:
            job = _held(connection, job_id, epoch)
            change_status(connection, job, status, error["message"] if error else status, error)
            return get_job(connection, job_id)

    def jobs_to_publish(self) -> list[JobRecord]:
        """Jobs that MLflow has not been told all of, oldest first."""
        untold = or_(
            jobs.c.run_id.is_(None),
            jobs.c.published_seq < jobs.c.point_count,
            and_(jobs.c.status.in_(FINAL), jobs.c.run_ended.is_(False)),
            and_(jobs.c.status == RUNNING, jobs.c.result.is_not(None)),
        )
        started = jobs.c.started_at.is_not(None)
        with self.database.read() as connection:
            rows = connection.execute(select(jobs).where(started, untold).order_by(jobs.c.number))
            return [record(JobRecord, row) for row in rows]

    def set_run(self, job_id: str, run_id: str, experiment_id: str) -> None:
        """The job's run in MLflow."""
        with self.database.write() as connection:
            connection.execute(
                update(jobs).where(jobs.c.id == job_id).values(run_id=run_id, experiment_id=experiment_id)
            )

    def mark_run_ended(self, job_id: str) -> None:
        """MLflow knows that the job has ended."""
        with self.database.write() as connection:
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(run_ended=True))


def _held(connection: Connection, job_id: str, epoch: int) -> JobRecord:
    job = get_job(connection, job_id)
    if job.status != RUNNING or job.lease_epoch != epoch:
        raise LeaseLost(job_id, epoch)
    return job


def _update(connection: Connection, job_id: str, epoch: int, values: dict[str, Any]) -> None:
    changed = connection.execute(
        update(jobs).where(jobs.c.id == job_id, jobs.c.lease_epoch == epoch, jobs.c.status == RUNNING).values(**values)
    )
    if changed.rowcount != 1:
        raise LeaseLost(job_id, epoch)
