"""Which of several controllers works: one row, held under a lease of its own. The others stand by.

Controllers of one cluster share its actors, which know no epochs: so only one of them may act on it at a time.
"""

import time

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from service.database import Database, record
from service.errors import LeadLost
from service.job_events import TakeOver
from service.job_state import RUNNING
from service.records import LeadRecord
from service.store_jobs import change
from service.tables import jobs, leads

_NAME = "controller"


class LeadStore:
    """Statements over the lead."""

    database: Database

    def leader(self) -> LeadRecord | None:
        """Who leads, or led last; None: nobody ever did."""
        with self.database.read() as connection:
            return _leader(connection)

    def take_lead(self, owner: str, seconds: float, over: LeadRecord | None) -> LeadRecord | None:
        """The lead for `owner`, unless it has changed hands since `over` was seen: None then.

        The leases of all running jobs end in the same transaction: their controller is gone, and they may be claimed.
        """
        lead = LeadRecord(owner, 1 if over is None else over.epoch + 1, time.time() + seconds)
        try:
            with self.database.write() as connection:
                if not _write(connection, lead, over):
                    return None
                for job_id in connection.execute(select(jobs.c.id).where(jobs.c.status == RUNNING)).scalars().all():
                    change(connection, job_id, TakeOver(time.time()))
        except IntegrityError:
            return None  # two at once, where nobody led before
        return lead

    def renew_lead(self, lead: LeadRecord, seconds: float) -> None:
        """Push its end out. Raises LeadLost when it is somebody else's by now."""
        with self.database.write() as connection:
            if not _write(connection, LeadRecord(lead.owner, lead.epoch, time.time() + seconds), lead):
                raise LeadLost(lead.owner)


def refuse_unless_leading(connection: Connection, owner: str) -> None:
    """Raises LeadLost when another than `owner` leads."""
    found = select(leads.c.owner).where(leads.c.name == _NAME).with_for_update(read=True)
    leader = connection.execute(found).scalar()  # locked, so that it stays true for as long as the transaction lasts
    if leader is not None and leader != owner:
        raise LeadLost(owner)


def _leader(connection: Connection) -> LeadRecord | None:
    row = connection.execute(select(leads).where(leads.c.name == _NAME)).first()
    return None if row is None else record(LeadRecord, row)


def _write(connection: Connection, lead: LeadRecord, over: LeadRecord | None) -> bool:
    """Whether `lead` has followed on `over`."""
    values = {"owner": lead.owner, "epoch": lead.epoch, "expires_at": lead.expires_at}
    if over is None:
        if _leader(connection) is not None:
            return False
        connection.execute(insert(leads).values(name=_NAME, **values))
        return True
    same = leads.c.name == _NAME, leads.c.owner == over.owner, leads.c.epoch == over.epoch
    return connection.execute(update(leads).where(*same).values(**values)).rowcount == 1
