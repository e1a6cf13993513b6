"""A controller's lead: it works while it holds it, and ends when another one has taken it.

The lead is a row of the store under a lease (`service.store_lead`). A process that was stopped for longer than that
finds out before it does anything more. The clock that says so is the process's own, which goes on while it is stopped,
and which nobody moves: by the wall's, an hour between two machines would be a lead for an hour, or for none.
"""

import time
from collections.abc import Callable
from typing import Protocol

from service.errors import LeadLost
from service.process_identity import is_gone
from service.records import LeadRecord

RENEWALS = 6  # in the time of a lease
MISSED = 2  # renewals: who has missed so many, and should have made them long ago by the wall's clock, is gone


class LeadTable(Protocol):
    """What it needs of the store."""

    def leader(self) -> LeadRecord | None: ...
    def take_lead(self, owner: str, seconds: float, over: LeadRecord | None) -> LeadRecord | None: ...
    def renew_lead(self, lead: LeadRecord, seconds: float) -> None: ...


class Lead:
    """The lead as the controller `owner` sees it: not held until `take` says so. `seconds`: the lease's length."""

    def __init__(
        self,
        store: LeadTable,
        owner: str,
        seconds: float,
        is_gone: Callable[[str], bool] = is_gone,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.owner, self.seconds = owner, seconds
        self._store, self._is_gone, self._clock, self._wall_clock = store, is_gone, clock, wall_clock
        self._record: LeadRecord | None = None
        self._renewed_at = 0.0
        self._seen: LeadRecord | None = None
        self._seen_at = 0.0

    def take(self) -> bool:
        """Takes it, if nobody has it: its holder is gone, or was not seen to renew it for the time of a lease."""
        found, now = self._store.leader(), self._clock()
        if found != self._seen:
            self._seen, self._seen_at = found, now
        if found is not None and not self._is_gone(found.owner):
            missed = MISSED if found.expires_at <= self._wall_clock() else RENEWALS
            if now - self._seen_at < missed * self.seconds / RENEWALS:
                return False
        self._record, self._renewed_at = self._store.take_lead(self.owner, self.seconds, found), now
        return self._record is not None

    def hold(self) -> None:
        """Call it before every deed: renews the lease when that is due. Raises LeadLost when it is another's by now."""
        if self._record is None:
            raise LeadLost(self.owner)
        now = self._clock()
        if now - self._renewed_at > self.seconds / RENEWALS:
            self._store.renew_lead(self._record, self.seconds)
            self._renewed_at = now

    @property
    def is_held(self) -> bool:
        """Whether nobody else can have taken it."""
        return self._record is not None and self._clock() - self._renewed_at < self.seconds
