"""Jobs in the store, as the API sees them: submitted, listed, asked to stop, deleted."""

import time

from sqlalchemy import ColumnElement, Connection, delete, exists, func, insert, select, update

from service.database import Database, record
from service.errors import Conflict, InvalidTransition, NotFound
from service.job_state import FINAL, QUEUED, is_allowed, on_cancel
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
    ) -> JobRecord:
        """A queued job. NotFound when the dataset has been deleted meanwhile."""
        with self.database.write() as connection:
            if connection.execute(select(datasets.c.id).where(datasets.c.id == dataset_id)).first() is None:
                raise NotFound("dataset", dataset_id)
            connection.execute(
                insert(jobs).values(
                    id=job_id,
                    name=name,
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
        with self.database.write() as connection:
            job = get_job(connection, job_id)
            decision = on_cancel(job.status, job.cancel_requested)
            if decision is None:
                raise InvalidTransition(job_id, job.status, "cancelled")
            if decision.status is not None:
                change_status(connection, job, decision.status, "cancelled before it started")
            elif decision.set_flag:
                add_events(connection, job_id, [NewEvent("log", "info", "asked to cancel", {"cancel_requested": True})])
            if decision.set_flag:
                connection.execute(update(jobs).where(jobs.c.id == job_id).values(cancel_requested=True))
            return get_job(connection, job_id)

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
            return len(connection.execute(select(jobs.c.id).where(jobs.c.status.in_(statuses))).all())


def get_job(connection: Connection, job_id: str) -> JobRecord:
    """Raises NotFound."""
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).first()
    if row is None:
        raise NotFound("job", job_id)
    return record(JobRecord, row)


def change_status(connection: Connection, job: JobRecord, status: str, message: str, error: Json | None = None) -> None:
    """Move `job` to `status`, guarded by the status it was decided for, with its event. The pair must be allowed."""
    if not is_allowed(job.status, status):
        raise InvalidTransition(job.id, job.status, status)
    values: Json = {"status": status, "status_reason": None}
    if status in FINAL:
        values |= {"finished_at": time.time(), "error": error, "lease_owner": None, "lease_expires_at": None}
    changed = connection.execute(update(jobs).where(jobs.c.id == job.id, jobs.c.status == job.status).values(**values))
    if changed.rowcount != 1:
        raise InvalidTransition(job.id, job.status, status)
    level = "error" if status == "failed" else "info"
    data: Json = {"status": status} | ({"error": error} if error else {})
    add_events(connection, job.id, [NewEvent("status", level, message, data)])
