"""Datasets in the store."""

import time
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from service.database import Database, record
from service.errors import Conflict, NotFound
from service.job_state import FINAL
from service.records import DatasetRecord, Json, Page
from service.tables import datasets, jobs


class DatasetStore:
    """Statements over datasets."""

    database: Database

    def create_dataset(self, dataset_id: str, name: str, file_format: str) -> DatasetRecord:
        """A new version of `name`, `processing`."""
        with self.database.write() as connection:
            newest = connection.execute(select(func.max(datasets.c.version)).where(datasets.c.name == name)).scalar()
            connection.execute(
                insert(datasets).values(
                    id=dataset_id,
                    name=name,
                    version=(newest or 0) + 1,
                    status="processing",
                    created_at=time.time(),
                    format=file_format,
                )
            )
            return _get(connection, dataset_id)

    def finish_dataset(self, dataset_id: str, found: Json) -> DatasetRecord:
        """`processing` -> `ready`, with what dataset.json says."""
        values = {key: found[key] for key in ("rows", "bytes", "sha256", "columns")}
        with self.database.write() as connection:
            connection.execute(
                update(datasets)
                .where(datasets.c.id == dataset_id, datasets.c.status == "processing")
                .values(status="ready", **values)
            )
            return _get(connection, dataset_id)

    def fail_dataset(self, dataset_id: str, error: Json) -> DatasetRecord:
        """`processing` -> `failed`."""
        with self.database.write() as connection:
            connection.execute(
                update(datasets)
                .where(datasets.c.id == dataset_id, datasets.c.status == "processing")
                .values(status="failed", error=error)
            )
            return _get(connection, dataset_id)

    def forget_dataset(self, dataset_id: str) -> None:
        """Remove one that never became ready, as if it had not been uploaded."""
        with self.database.write() as connection:
            connection.execute(delete(datasets).where(datasets.c.id == dataset_id, datasets.c.status != "ready"))

    def delete_dataset(self, dataset: str) -> DatasetRecord:
        """Remove it. Conflict dataset_in_use while a job that has not ended needs it."""
        with self.database.write() as connection:
            found = _get(connection, dataset)
            using = connection.execute(
                select(jobs.c.id).where(jobs.c.dataset_id == found.id, jobs.c.status.not_in(FINAL)).limit(1)
            ).scalar()
            if using is not None:
                raise Conflict("dataset_in_use", f"{found.name} ({found.id}) is in use by {using}, which has not ended")
            connection.execute(delete(datasets).where(datasets.c.id == found.id))
            return found

    def get_dataset(self, dataset: str) -> DatasetRecord:
        """By id, or by name: then its newest version that is ready, else its newest. Raises NotFound."""
        with self.database.read() as connection:
            return _get(connection, dataset)

    def list_datasets(self, limit: int, after: str | None = None) -> Page:
        """Newest first, from behind the id `after`."""
        with self.database.read() as connection:
            query = select(datasets).order_by(datasets.c.number.desc()).limit(limit + 1)
            if after is not None:
                query = query.where(datasets.c.number < _get(connection, after).number)
            rows = connection.execute(query).all()
        return Page([record(DatasetRecord, row) for row in rows[:limit]], len(rows) > limit)

    def ready_dataset_ids(self) -> set[str]:
        """Those whose files are needed."""
        with self.database.read() as connection:
            return set(connection.execute(select(datasets.c.id).where(datasets.c.status == "ready")).scalars())

    def processing_datasets(self) -> list[DatasetRecord]:
        """Those whose check has not ended: after a start of the API, what its predecessor left."""
        with self.database.read() as connection:
            rows = connection.execute(select(datasets).where(datasets.c.status == "processing")).all()
        return [record(DatasetRecord, row) for row in rows]


def _get(connection: Connection, dataset: str) -> DatasetRecord:
    row: Any = connection.execute(select(datasets).where(datasets.c.id == dataset)).first()
    if row is None:
        ready_first = (datasets.c.status == "ready").desc(), datasets.c.version.desc()
        row = connection.execute(select(datasets).where(datasets.c.name == dataset).order_by(*ready_first)).first()
    if row is None:
        raise NotFound("dataset", dataset)
    return record(DatasetRecord, row)
