"""Events and metric points in the store: appended, numbered without gaps, never changed."""

import math
import time
from collections.abc import Sequence

from sqlalchemy import Connection, insert, select, update

from service.database import Database, count_up, read_counter, record
from service.records import EventRecord, NewEvent, PointRecord
from service.tables import events, jobs, points

_EVENTS_COUNTER = "events"
NewPoint = tuple[str, int, float, float]  # series, step, value, timestamp


class EventStore:
    """What is read of events and points."""

    database: Database

    def events_after(self, job_id: str, after_id: int, limit: int) -> list[EventRecord]:
        """The job's events behind number `after_id`, oldest first."""
        query = (
            select(events).where(events.c.job_id == job_id, events.c.id > after_id).order_by(events.c.id).limit(limit)
        )
        with self.database.read() as connection:
            return [record(EventRecord, row) for row in connection.execute(query)]

    def last_event_number(self) -> int:
        """A number that rises with every event of any job: cheap to watch."""
        with self.database.read() as connection:
            return read_counter(connection, _EVENTS_COUNTER)

    def metric_series(self, job_id: str) -> dict[str, list[tuple[int, float | None]]]:
        """Every series of the job: (step, value) in the order of the steps."""
        query = select(points.c.series, points.c.step, points.c.value).where(points.c.job_id == job_id)
        series: dict[str, list[tuple[int, float | None]]] = {}
        with self.database.read() as connection:
            for name, step, value in connection.execute(query.order_by(points.c.series, points.c.step)):
                series.setdefault(name, []).append((step, value))
        return series

    def unpublished_points(self, job_id: str, limit: int = 1000) -> list[PointRecord]:
        """The job's oldest points that MLflow has not been told."""
        query = (
            select(points)
            .join(jobs, jobs.c.id == points.c.job_id)
            .where(points.c.job_id == job_id, points.c.seq > jobs.c.published_seq)
            .order_by(points.c.seq)
            .limit(limit)
        )
        with self.database.read() as connection:
            return [record(PointRecord, row) for row in connection.execute(query)]

    def mark_published(self, job_id: str, seq: int) -> None:
        """MLflow has the points up to `seq`."""
        with self.database.write() as connection:
            connection.execute(
                update(jobs).where(jobs.c.id == job_id, jobs.c.published_seq < seq).values(published_seq=seq)
            )


def add_events(connection: Connection, job_id: str, new: Sequence[NewEvent]) -> None:
    """Append to the job's events. The caller's transaction makes the numbers gapless."""
    if not new:
        return
    count = connection.execute(select(jobs.c.event_count).where(jobs.c.id == job_id)).scalar_one()
    now = time.time()
    connection.execute(
        insert(events),
        [
            {
                "job_id": job_id,
                "id": count + number,
                "type": event.type,
                "created_at": now,
                "level": event.level,
                "message": event.message,
                "data": event.data,
            }
            for number, event in enumerate(new, start=1)
        ],
    )
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(event_count=count + len(new)))
    count_up(connection, _EVENTS_COUNTER)


def add_points(connection: Connection, job_id: str, new: Sequence[NewPoint]) -> int:
    """Append those points whose (series, step) the job does not have yet: the first write wins. Returns how many."""
    if not new:
        return 0
    seq = connection.execute(select(jobs.c.point_count).where(jobs.c.id == job_id)).scalar_one()
    known = {
        (series, step)
        for series, step in connection.execute(
            select(points.c.series, points.c.step).where(
                points.c.job_id == job_id, points.c.step >= min(step for _, step, _, _ in new)
            )
        )
    }
    rows = []
    for series, step, value, timestamp in new:
        if (series, step) not in known:
            known.add((series, step))
            seq += 1
            finite = value if math.isfinite(value) else None
            rows.append(
                {"job_id": job_id, "series": series, "step": step, "value": finite, "timestamp": timestamp, "seq": seq}
            )
    if rows:
        connection.execute(insert(points), rows)
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(point_count=seq))
    return len(rows)
