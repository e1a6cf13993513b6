"""Jobs in the store, as the API sees them: submitted, listed, asked to pause or end, deleted.

`change` is the one way in which a job's state changes, for users and controllers alike.
"""

import time
from dataclasses import fields
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, exists, func, insert, select, update

from service.database import Database, record
from service.errors import Conflict, NotFound, QueueFull
from service.job_events import Cancel, Effect, Event, Pause, Resume, Scale, Tell, UserEvent
from service.job_state import FINAL, QUEUED, JobState, state_of, step
from service.records import JobRecord, Json, NewEvent, Page
from service.store_events import add_events
from service.tables import datasets, jobs


class JobStore:
    """Statements over jobs on behalf of their users."""

    database: Database

    def create_job(
        self,
        job_id: str,
        name: str,
        dataset_id: str,
        spec: Json,
        plan: Json,
        metadata: dict[str, str],
        model_name: str | None,
        priority: int = 0,
        most_queued: int | None = None,
    ) -> JobRecord:
        """A queued job. NotFound when the dataset has been deleted meanwhile, QueueFull when `most_queued` wait."""
        with self.database.write() as connection:
            if most_queued is not None and (queued := _count(connection, frozenset({QUEUED}))) >= most_queued:
                raise QueueFull(queued)
            if connection.execute(select(datasets.c.id).where(datasets.c.id == dataset_id)).first() is None:
                raise NotFound("dataset", dataset_id)
            connection.execute(
                insert(jobs).values(
                    id=job_id,
                    name=name,
                    priority=priority,
                    status=QUEUED,
                    created_at=time.time(),
                    dataset_id=dataset_id,
                    spec=spec,
                    plan=plan,
                    metadata=metadata,
                    metrics={},
                    model_name=model_name,
                )
            )
            add_events(connection, job_id, [NewEvent("status", "info", "queued", {"status": QUEUED})])
            return get_job(connection, job_id)

    def get_job(self, job_id: str) -> JobRecord:
        """Raises NotFound."""
        with self.database.read() as connection:
            return get_job(connection, job_id)

    def list_jobs(
        self,
        limit: int,
        after: str | None = None,
        status: str | None = None,
        name: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> Page:
        """Newest first, from behind the id `after`; only those that match every filter given."""
        with self.database.read() as connection:
            query = select(jobs).order_by(jobs.c.number.desc()).limit(limit + 1)
            if after is not None:
                query = query.where(jobs.c.number < get_job(connection, after).number)
            if status is not None:
                query = query.where(jobs.c.status == status)
            if name is not None:
                query = query.where(jobs.c.name == name)
            for key, value in (metadata or {}).items():
                query = query.where(self._has_metadata(key, value))
            rows = connection.execute(query).all()
        return Page([record(JobRecord, row) for row in rows[:limit]], len(rows) > limit)

    def _has_metadata(self, key: str, value: str) -> ColumnElement[bool]:
        """By the pairs, not by a path: SQLite compares a path's names with the stored text, escapes and all."""
        each = func.json_each if self.database.is_sqlite else func.json_each_text
        pairs = each(jobs.c.metadata).table_valued("key", "value")
        return exists(select(pairs.c.key).where(pairs.c.key == key, pairs.c.value == value))

    def request_cancel(self, job_id: str) -> JobRecord:
        """Cancel a waiting job, or ask a running one to end. Repeatable. Raises InvalidTransition after another end."""
        return self._request(job_id, Cancel(time.time()))

    def request_pause(self, job_id: str) -> JobRecord:
        """Pause a waiting job, or ask a running one to. Repeatable. Raises InvalidTransition where it is too late."""
        return self._request(job_id, Pause(time.time()))

    def request_resume(self, job_id: str) -> JobRecord:
        """Queue a paused job again, in the turn it had; take a request to pause back. Repeatable."""
        return self._request(job_id, Resume(time.time()))

    def request_scale(self, job_id: str, workers: int) -> JobRecord:
        """Have the job go on with `workers` workers. Repeatable. Raises InvalidTransition where it is too late."""
        return self._request(job_id, Scale(time.time(), workers))

    def _request(self, job_id: str, event: UserEvent) -> JobRecord:
        with self.database.write() as connection:
            return change(connection, job_id, event)[0]

    def delete_job(self, job_id: str) -> JobRecord:
        """Remove an ended job with its events and points; Conflict job_not_ended otherwise."""
        with self.database.write() as connection:
            job = get_job(connection, job_id)
            if job.status not in FINAL:
                raise Conflict("job_not_ended", f"{job_id} is {job.status}: only an ended job can be deleted")
            connection.execute(delete(jobs).where(jobs.c.id == job_id))
            return job

    def count_jobs(self, statuses: frozenset[str]) -> int:
        """How many jobs have one of `statuses`."""
        with self.database.read() as connection:
            return _count(connection, statuses)


def get_job(connection: Connection, job_id: str) -> JobRecord:
    """Raises NotFound."""
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).first()
    if row is None:
        raise NotFound("job", job_id)
    return record(JobRecord, row)


def change(
    connection: Connection, job_id: str, event: Event, values: Json | None = None
) -> tuple[JobRecord, tuple[Effect, ...]]:
    """What `step` makes of the job, and what is to be done; its events are written with it.

    `values` are further columns, written if the job becomes `trained` by it. The UPDATE is guarded by the state that
    it was decided for: whoever was slower decides again. Raises what `step` raises.
    """
    while True:
        job = get_job(connection, job_id)
        before = state_of(job)
        after, effects = step(before, event)
        if after == before:
            return job, effects
        further = values or {} if after.trained and not before.trained else {}
        changed = connection.execute(update(jobs).where(*_is(before)).values({**_columns(before, after), **further}))
        if changed.rowcount == 1:
            add_events(connection, job_id, [effect.event for effect in effects if isinstance(effect, Tell)])
            return get_job(connection, job_id), effects


def _is(state: JobState) -> list[ColumnElement[bool]]:
    """The job is still in that state, in all that decides."""
    return [
        jobs.c.id == state.id,
        jobs.c.status == state.status,
        jobs.c.cancel_requested == state.cancel_requested,
        jobs.c.pause_requested == state.pause_requested,
        jobs.c.waits_for_disk.is_not_distinct_from(state.waits_for_disk),
        jobs.c.workers_requested.is_not_distinct_from(state.workers_requested),
        jobs.c.lease_epoch == state.lease_epoch,
        jobs.c.lease_expires_at.is_not_distinct_from(state.lease_expires_at),
        jobs.c.registering == state.registering,
        jobs.c.result.is_not(None) if state.trained else jobs.c.result.is_(None),
    ]


def _columns(before: JobState, after: JobState) -> dict[str, Any]:
    """What has changed. Another status has no reason yet but the disk; that the job is trained shows by its result."""
    names = [field.name for field in fields(JobState) if field.name != "trained"]
    changed = {name: value for name in names if (value := getattr(after, name)) != getattr(before, name)}
    reason = {"status_reason": after.waits_for_disk} if changed.keys() & {"status", "waits_for_disk"} else {}
    return changed | reason


def _count(connection: Connection, statuses: frozenset[str]) -> int:
    return int(connection.execute(select(func.count()).where(jobs.c.status.in_(statuses))).scalar_one())
