"""Idempotency keys in the store: the same key and body gets the first answer."""

import time

from sqlalchemy import delete, insert, select, update

from service.database import Database, record
from service.errors import KeyReused
from service.records import Idempotent
from service.tables import datasets, idempotency, jobs


class IdempotencyStore:
    """Statements over idempotency keys."""

    database: Database

    def begin_idempotent(self, key: str, route: str, body_sha256: str, resource_id: str) -> Idempotent | None:
        """Take the key for the resource to be; None: it is taken now. Else what is known under it, whose
        `resource_id` may be another. KeyReused when it came with another body."""
        with self.database.write() as connection:
            query = select(idempotency).where(idempotency.c.key == key, idempotency.c.route == route)
            row = connection.execute(query).first()
            if row is not None:
                if row.body_sha256 != body_sha256:
                    raise KeyReused(key)
                return record(Idempotent, row)
            connection.execute(
                insert(idempotency).values(
                    key=key, route=route, body_sha256=body_sha256, created_at=time.time(), resource_id=resource_id
                )
            )
            return None

    def finish_idempotent(self, key: str, route: str, status: int, answer: str) -> None:
        """Remember the first answer."""
        with self.database.write() as connection:
            connection.execute(
                update(idempotency)
                .where(idempotency.c.key == key, idempotency.c.route == route)
                .values(status=status, answer=answer)
            )

    def release_idempotent(self, key: str, route: str) -> None:
        """Give the key back: the request was refused, and nothing was made."""
        with self.database.write() as connection:
            connection.execute(
                delete(idempotency).where(
                    idempotency.c.key == key, idempotency.c.route == route, idempotency.c.status.is_(None)
                )
            )

    def release_unanswered(self) -> set[str]:
        """Give back the keys of requests that a crash cut off, unless a job or a ready dataset was made under them.

        Returns the ids that their resources would have had. Only for the start of the API: no request is at work.
        """
        made = select(jobs.c.id).union(select(datasets.c.id).where(datasets.c.status == "ready"))
        cut_off = idempotency.c.status.is_(None), idempotency.c.resource_id.not_in(made)
        with self.database.write() as connection:
            found = set(connection.execute(select(idempotency.c.resource_id).where(*cut_off)).scalars())
            connection.execute(delete(idempotency).where(*cut_off))
            return found
