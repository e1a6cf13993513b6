"""The store: the truth about datasets, jobs and models. Every SQL statement of the service stands in `store*.py`.

One class of many statements, grouped by noun: datasets, jobs (for users), leases and the lead (for controllers), events
and points, models, idempotency keys. Each method is one transaction; each transition is guarded inside its UPDATE and
writes its event in the same transaction.
"""

import copy

from service.database import BUSY_SECONDS, Database, ping
from service.store_datasets import DatasetStore
from service.store_events import EventStore
from service.store_idempotency import IdempotencyStore
from service.store_jobs import JobStore
from service.store_lead import LeadStore, refuse_unless_leading
from service.store_leases import LeaseStore
from service.store_models import ModelStore


class Store(DatasetStore, JobStore, LeaseStore, LeadStore, EventStore, ModelStore, IdempotencyStore):
    """The store behind `url`, a SQLAlchemy URL, whose schema is up to date (`service.migrate`). Threads share it."""

    def __init__(self, url: str, busy_seconds: float = BUSY_SECONDS) -> None:
        """`busy_seconds`: how long each transaction waits for others before it raises StoreUnavailable."""
        self.database = Database(url, busy_seconds)

    def led_by(self, owner: str) -> "Store":
        """The same one, for the controller `owner`: once another one leads, every write raises LeadLost, and writes
        nothing, however late it comes."""
        led = copy.copy(self)
        led.database = self.database.guarded(lambda connection: refuse_unless_leading(connection, owner))
        return led

    def ping(self) -> None:
        """Raises when the store does not answer."""
        ping(self.database)

    def close(self) -> None:
        """Close all connections."""
        self.database.close()
