"""A job's life as pure functions: which statuses there are, which may follow which, what a request to cancel means.

No I/O here: the store applies what is decided, guarded by the status it was decided for.
"""

from dataclasses import dataclass

QUEUED, RUNNING, PAUSED, SUCCEEDED, FAILED, CANCELLED = (
    "queued",
    "running",
    "paused",
    "succeeded",
    "failed",
    "cancelled",
)
STATUSES = (QUEUED, RUNNING, PAUSED, SUCCEEDED, FAILED, CANCELLED)
FINAL = frozenset({SUCCEEDED, FAILED, CANCELLED})
PHASES = ("preparing", "training", "evaluating", "registering")
EVENT_TYPES = ("status", "metric", "checkpoint", "fault", "log")
LEVELS = ("info", "warning", "error")

ALLOWED = frozenset(
    {
        (QUEUED, RUNNING),
        (QUEUED, PAUSED),
        (QUEUED, FAILED),
        (QUEUED, CANCELLED),
        (RUNNING, PAUSED),
        (RUNNING, SUCCEEDED),
        (RUNNING, FAILED),
        (RUNNING, CANCELLED),
        (PAUSED, QUEUED),
        (PAUSED, CANCELLED),
    }
)


@dataclass(frozen=True)
class CancelDecision:
    """What a request to cancel does: move to `status` at once, or set the flag, or nothing (asked before)."""

    status: str | None
    set_flag: bool


def is_allowed(current: str, following: str) -> bool:
    """May a job go from status `current` to `following`?"""
    return (current, following) in ALLOWED


def is_claimable(status: str, lease_expires_at: float | None, now: float) -> bool:
    """May a controller take the job: it waits, or it runs under a lease that has run out?"""
    if status == QUEUED:
        return True
    return status == RUNNING and (lease_expires_at is None or lease_expires_at < now)


def on_cancel(status: str, cancel_requested: bool) -> CancelDecision | None:
    """Decide a request to cancel; None: the status forbids it. Asking again changes nothing.

    A job that nobody works on is cancelled at once; a running one gets the flag, and its trainer ends it.
    """
    if status in (QUEUED, PAUSED):
        return CancelDecision(CANCELLED, set_flag=True)
    if status == RUNNING:
        return CancelDecision(None, set_flag=not cancel_requested)
    if status == CANCELLED:
        return CancelDecision(None, set_flag=False)
    return None
