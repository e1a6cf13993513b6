"""Jobs in the store, as controllers see them: claimed under a lease, moved on, ended. Every write carries the epoch.

A controller that was stopped for longer than its lease finds that its epoch is an old one, and writes nothing more.
"""

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, and_, or_, select, update

from service import disk
from service.database import Database, record
from service.errors import InvalidTransition, LeaseLost
from service.job_events import Claim, Effect, End, Event, Renew, RoomAgain, TrainerEnded
from service.job_state import FINAL, PAUSED, QUEUED, RUNNING, SUCCEEDED
from service.records import JobRecord, Json, NewEvent
from service.store_events import NewPoint, add_events, add_points
from service.store_jobs import change, get_job
from service.tables import jobs


class LeaseStore:
    """Statements over jobs on behalf of controllers. A stale epoch raises LeaseLost, and nothing is written."""

    database: Database

    def apply(self, job_id: str, event: Event, values: Json | None = None) -> tuple[JobRecord, tuple[Effect, ...]]:
        """What has happened to the job: its record then, and what is to be done. See `service.job_state.step`."""
        with self.database.write() as connection:
            return change(connection, job_id, event, values)

    def claim_job(self, owner: str, lease_seconds: float, job_id: str | None = None) -> JobRecord | None:
        """That job (None: the next) under a lease of `owner` with the next epoch; None: there is nothing to claim."""
        now = time.time()
        with self.database.write() as connection:
            if job_id is None:
                found = _expired(connection, now) or _in_turn(connection, 1)
                if not found:
                    return None
                job_id = found[0].id
            try:
                return change(connection, job_id, Claim(now, owner, lease_seconds))[0]
            except InvalidTransition:
                return None  # cancelled or paused since it was seen

    def expired_jobs(self) -> list[JobRecord]:
        """Running jobs whose lease has run out, in their turn."""
        with self.database.read() as connection:
            return _expired(connection, time.time())

    def queued_jobs(self, limit: int) -> list[JobRecord]:
        """The next jobs that wait: by priority, and first come, first served within one."""
        with self.database.read() as connection:
            return _in_turn(connection, limit)

    def explain_wait(self, job_id: str, reason: str | None) -> None:
        """Why a queued job is not started yet, with a log event when that changes; None: it is simply not its turn."""
        with self.database.write() as connection:
            changed = connection.execute(
                update(jobs)
                .where(jobs.c.id == job_id, jobs.c.status == QUEUED, jobs.c.status_reason.is_distinct_from(reason))
                .values(status_reason=reason)
            )
            if changed.rowcount == 1 and reason is not None:
                add_events(connection, job_id, [NewEvent("log", "info", reason, {"status_reason": reason})])

    def room_again(self) -> None:
        """The disks have room: the jobs that the service has paused for them go on, queued ones wait for it no more."""
        waiting = jobs.c.status == QUEUED, jobs.c.status_reason.startswith(disk.WAITING)
        with self.database.write() as connection:
            paused = select(jobs.c.id).where(jobs.c.status == PAUSED, jobs.c.waits_for_disk.is_not(None))
            for job_id in connection.execute(paused.order_by(jobs.c.number)).scalars().all():
                change(connection, job_id, RoomAgain(time.time()))
            connection.execute(update(jobs).where(*waiting).values(status_reason=None))

    def renew_leases(self, owner: str, job_ids: Sequence[str], lease_seconds: float) -> None:
        """Push the end of the owner's leases on those jobs out."""
        with self.database.write() as connection:
            for job_id in job_ids:
                change(connection, job_id, Renew(time.time(), owner, lease_seconds))

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
    ) -> tuple[JobRecord, tuple[Effect, ...]]:
        """What training gave: the job is `registering` from now on. Written once; later calls change nothing."""
        with self.database.write() as connection:
            progress = {**(get_job(connection, job_id).progress or {}), "phase": "registering", "eta_seconds": None}
            values = {"result": result, "artifact_sha256": artifact_sha256, "model_metadata": model_metadata}
            ended = TrainerEnded(time.time(), epoch, SUCCEEDED)
            return change(connection, job_id, ended, {**values, "progress": progress, "status_reason": None})

    def finish_job(self, job_id: str, epoch: int, status: str, error: Json | None = None) -> JobRecord:
        """The job's end, with its event."""
        return self.apply(job_id, End(time.time(), epoch, status, error))[0]

    def jobs_to_publish(self) -> list[JobRecord]:
        """Jobs that MLflow has not been told all of, oldest first."""
        untold = or_(
            jobs.c.run_id.is_(None),
            jobs.c.published_seq < jobs.c.point_count,
            jobs.c.status.in_(FINAL),
            and_(jobs.c.status == RUNNING, jobs.c.result.is_not(None)),
        )
        open_runs = and_(jobs.c.run_ended.is_(False), jobs.c.started_at.is_not(None))  # the index jobs_untold
        with self.database.read() as connection:
            rows = connection.execute(select(jobs).where(open_runs, untold).order_by(jobs.c.number))
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


def _expired(connection: Connection, now: float) -> list[JobRecord]:
    over = or_(jobs.c.lease_expires_at.is_(None), jobs.c.lease_expires_at <= now)
    query = select(jobs).where(jobs.c.status == RUNNING, over).order_by(jobs.c.priority.desc(), jobs.c.number)
    return [record(JobRecord, row) for row in connection.execute(query)]


def _in_turn(connection: Connection, limit: int) -> list[JobRecord]:
    query = select(jobs).where(jobs.c.status == QUEUED).order_by(jobs.c.priority.desc(), jobs.c.number).limit(limit)
    return [record(JobRecord, row) for row in connection.execute(query)]


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
