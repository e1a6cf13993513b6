"""How a job lives: `step(state, event) -> (state, effects)`, a pure function. Read this file, and you know.

    queued ──Claim──▶ running ──End──▶ succeeded | failed
    queued ──Pause──▶ paused ──Resume──▶ queued
    running ──Pause, then TrainerEnded──▶ paused
    running ──Claim, once the lease has run out──▶ running, under the next epoch
    running ──a look that finds no room on the disk, then TrainerEnded──▶ paused ──RoomAgain──▶ queued
    any of the three ──Cancel──▶ cancelled; from running by way of TrainerEnded

- Six statuses, the last three final. What users intend is a flag (`cancel_requested`, `pause_requested`) for as long as
  a trainer works; where none does, it is done at once. Scale changes `workers_requested` alone, before the job is
  trained.
- A job that the service itself pauses, for want of room on a disk, `waits_for_disk`; it holds the reason. RoomAgain
  resumes no other. A user who pauses it makes that pause the user's own; one who resumes it changes nothing.
- A running job belongs to the controller whose lease it is under. Each claim raises the lease's epoch; an event that
  carries an older one is refused with LeaseLost, so that a controller that was stopped for long changes nothing more.
- A running job trains (`trained` is false), then its model is registered: from `registering` on, MLflow may hold its
  version, and no request to cancel takes that back.

No clock and no I/O: the time comes with the event. The store applies `step` inside one transaction, guarded by the
state that it was decided for, and writes what is to be told into the job's events; the controller carries the other
effects out. What a crash between the two leaves undone, the next look at the job (TrainerMissing, TrainerRuns) asks
for again: so every effect may be carried out twice.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, assert_never

from service.errors import InvalidTransition, LeaseLost
from service.job_events import (
    Cancel,
    Claim,
    Do,
    Effect,
    End,
    Event,
    Pause,
    RegistrationBegins,
    Renew,
    Resume,
    RoomAgain,
    Scale,
    TakeOver,
    Tell,
    TrainerEnded,
    TrainerLost,
    TrainerMissing,
    TrainerRuns,
)
from service.records import JobRecord, Json, NewEvent

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

# Which status may follow which.
ALLOWED = frozenset(
    {
        (QUEUED, RUNNING),
        (QUEUED, PAUSED),
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
class JobState:
    """What decides about a job: its status, intentions and lease. The fields are columns of the store."""

    id: str
    status: str = QUEUED
    cancel_requested: bool = False
    pause_requested: bool = False
    lease_owner: str | None = None
    lease_epoch: int = 0
    lease_expires_at: float | None = None
    trained: bool = False  # its result is stored: what remains is to register it
    registering: bool = False  # from here on MLflow may hold a version of it
    started_at: float | None = None
    finished_at: float | None = None
    error: Json | None = None
    workers_requested: int | None = None  # None: as its spec has it
    waits_for_disk: str | None = None  # why the service has it pause, and resumes it by itself


Step = tuple[JobState, tuple[Effect, ...]]


def step(state: JobState, event: Event) -> Step:
    """What becomes of the job, and what is to be done. The same state again: nothing changes.

    Raises InvalidTransition where the status forbids it, LeaseLost where the event comes from a former controller.
    """
    match event:
        case Cancel():
            return _cancel(state, event)
        case Pause():
            return _pause(state, event)
        case Resume():
            return _resume(state)
        case Scale():
            return _scale(state, event)
        case Claim():
            return _claim(state, event)
        case Renew():
            ours = state.status == RUNNING and state.lease_owner == event.owner
            return (replace(state, lease_expires_at=event.at + event.seconds) if ours else state), ()
        case TakeOver():
            return (_without_lease(state) if state.status == RUNNING else state), ()
        case RoomAgain():
            return _room_again(state)
        case TrainerMissing():
            return _trainer_missing(_held(state, event.epoch), event)
        case TrainerRuns():
            return _trainer_runs(_held(state, event.epoch), event)
        case TrainerEnded():
            return _trainer_ended(_held(state, event.epoch), event)
        case TrainerLost():
            return _trainer_lost(_held(state, event.epoch), event)
        case RegistrationBegins():
            return _registration_begins(_held(state, event.epoch), event)
        case End():
            return _end(_held(state, event.epoch), event)
        case _:
            assert_never(event)


def is_claimable(state: JobState, at: float) -> bool:
    """May a controller take the job: it waits, or it runs under a lease that has run out?"""
    if state.status == QUEUED:
        return True
    return state.status == RUNNING and (state.lease_expires_at is None or state.lease_expires_at <= at)


def _held(state: JobState, epoch: int) -> JobState:
    """The fence: only the job's present controller gets past it."""
    if state.status != RUNNING or state.lease_epoch != epoch:
        raise LeaseLost(state.id, epoch)
    return state


def _cancel(state: JobState, event: Cancel) -> Step:
    asked = replace(state, cancel_requested=True)
    if state.status == CANCELLED or (state.status == RUNNING and state.cancel_requested):
        return state, ()
    if state.status in (SUCCEEDED, FAILED):
        raise InvalidTransition(state.id, state.status, CANCELLED)
    if state.status != RUNNING:
        when = "before it started" if state.started_at is None else "while it waited"
        return _move(asked, CANCELLED, event.at, f"cancelled {when}")
    if state.trained and not state.registering:
        return _move(asked, CANCELLED, event.at, "cancelled before its model was registered")
    return asked, (_log("asked to cancel", {"cancel_requested": True}),)


def _pause(state: JobState, event: Pause) -> Step:
    if state.status == PAUSED and state.waits_for_disk is not None:
        told = _log("asked to pause: it will not go on by itself", {"pause_requested": True})
        return replace(state, waits_for_disk=None), (told,)
    if state.status == PAUSED or (state.status == RUNNING and state.pause_requested):
        return state, ()
    if state.status == QUEUED:
        return _move(state, PAUSED, event.at, "paused before it started")
    if state.status != RUNNING or state.cancel_requested or state.trained:
        why = "it was asked to cancel" if state.cancel_requested else "nothing is left to train"
        raise InvalidTransition(state.id, state.status, f"paused, since {why}" if state.status == RUNNING else PAUSED)
    return replace(state, pause_requested=True), (_log("asked to pause", {"pause_requested": True}),)


def _resume(state: JobState) -> Step:
    if state.status == PAUSED and state.waits_for_disk is None:
        return _move(state, QUEUED, None, "resumed")
    if state.status in FINAL:
        raise InvalidTransition(state.id, state.status, "resumed")
    if state.pause_requested:
        withdrawn = replace(state, pause_requested=False)
        return withdrawn, (_log("the request to pause is withdrawn", {"pause_requested": False}),)
    return state, ()


def _scale(state: JobState, event: Scale) -> Step:
    if state.status in FINAL or state.trained:
        raise InvalidTransition(state.id, state.status, "scaled, since nothing is left to train")
    if state.workers_requested == event.workers:
        return state, ()
    told = _log(f"asked for {event.workers} workers", {"workers_requested": event.workers})
    return replace(state, workers_requested=event.workers), (told,)


def _claim(state: JobState, event: Claim) -> Step:
    if not is_claimable(state, event.at):
        raise InvalidTransition(state.id, state.status, RUNNING)
    taken = replace(
        state,
        lease_owner=event.owner,
        lease_epoch=state.lease_epoch + 1,
        lease_expires_at=event.at + event.seconds,
        started_at=event.at if state.started_at is None else state.started_at,
    )
    return _move(taken, RUNNING, event.at, "started") if state.status == QUEUED else (taken, ())


def _room_again(state: JobState) -> Step:
    if state.status != PAUSED or state.waits_for_disk is None:
        return state, ()
    return _move(state, QUEUED, None, "resumed: the disk has room again")


def _trainer_missing(state: JobState, event: TrainerMissing) -> Step:
    if state.trained:
        return state, ()
    if state.cancel_requested:
        return _move(state, CANCELLED, event.at, CANCELLED)
    if state.pause_requested or event.shortage is not None:
        return _paused(replace(state, waits_for_disk=event.shortage), event.at)
    return replace(state, waits_for_disk=None), (Do.START,)


def _trainer_runs(state: JobState, event: TrainerRuns) -> Step:
    if state.trained:
        return state, (Do.RELEASE,)
    if state.cancel_requested:
        return state, (Do.CANCEL,)
    if state.pause_requested:
        return state, (Do.PAUSE,)
    if event.shortage is not None:
        asked = replace(state, waits_for_disk=state.waits_for_disk or event.shortage)
        told = () if asked == state else (_warning(event.shortage, {"status_reason": event.shortage}),)
        return asked, (*told, Do.PAUSE)
    scaled = () if state.workers_requested is None else (Do.SCALE,)
    if state.waits_for_disk is not None:  # its trainer may pause all the same: then it is started again
        return replace(state, waits_for_disk=None), (_log("the disk has room again: it need not pause", {}), *scaled)
    return state, scaled


def _trainer_ended(state: JobState, event: TrainerEnded) -> Step:
    """A request to cancel wins over a success that nobody has told MLflow of; a failure is told as one."""
    if state.trained:
        return state, (Do.RELEASE,)
    if event.outcome == FAILED:
        return _then(_move(state, FAILED, event.at, _message(event.error), event.error), Do.RELEASE)
    if state.cancel_requested:
        return _then(_move(state, CANCELLED, event.at, CANCELLED), Do.RELEASE)
    if event.outcome == SUCCEEDED:
        return replace(state, trained=True, pause_requested=False, waits_for_disk=None), (Do.RELEASE,)
    if event.outcome == PAUSED and (state.pause_requested or state.waits_for_disk is not None):
        return _then(_paused(state, event.at), Do.RELEASE)
    return _without_lease(state), (Do.RELEASE,)  # the pause was withdrawn too late: it is started again


def _trainer_lost(state: JobState, event: TrainerLost) -> Step:
    if event.error is not None:
        return _then(_move(state, FAILED, event.at, _message(event.error), event.error), Do.KILL)
    fault = Tell(NewEvent("fault", "warning", event.reason, {"attempt": event.epoch}))
    return _without_lease(state), (fault, Do.KILL)


def _registration_begins(state: JobState, event: RegistrationBegins) -> Step:
    if not state.trained:
        raise InvalidTransition(state.id, state.status, "registered")
    if state.cancel_requested and not state.registering:
        return _move(state, CANCELLED, event.at, CANCELLED)
    return replace(state, registering=True), ()


def _end(state: JobState, event: End) -> Step:
    if event.status == SUCCEEDED and not state.trained:
        raise InvalidTransition(state.id, state.status, SUCCEEDED)
    message = _message(event.error) if event.error else event.status
    return _then(_move(state, event.status, event.at, message, event.error), Do.KILL)


def _paused(state: JobState, at: float) -> Step:
    """Whose pause it is: the user's, where both wanted it."""
    if state.pause_requested or state.waits_for_disk is None:
        return _move(replace(state, waits_for_disk=None), PAUSED, at, PAUSED)
    return _move(state, PAUSED, at, f"paused: {state.waits_for_disk}")


def _move(state: JobState, status: str, at: float | None, message: str, error: Json | None = None) -> Step:
    """To another status, along an allowed pair. A lease lasts as long as the job runs; an intention, till it is met."""
    if (state.status, status) not in ALLOWED:
        raise InvalidTransition(state.id, state.status, status)
    changes: dict[str, Any] = {"status": status, "pause_requested": False}
    if status != PAUSED:
        changes |= {"waits_for_disk": None}
    if status != RUNNING:
        changes |= {"lease_owner": None, "lease_expires_at": None}
    if status in FINAL:
        changes |= {"finished_at": at, "error": error}
    data: Json = {"status": status} | ({"error": error} if error else {})
    told = Tell(NewEvent("status", "error" if status == FAILED else "info", message, data))
    return replace(state, **changes), (told,)


def _without_lease(state: JobState) -> JobState:
    """Any controller may claim it now, whatever its clock says."""
    return replace(state, lease_expires_at=None)


def _then(so_far: Step, effect: Do) -> Step:
    return so_far[0], (*so_far[1], effect)


def _log(message: str, data: Json) -> Tell:
    return Tell(NewEvent("log", "info", message, data))


def _warning(message: str, data: Json) -> Tell:
    return Tell(NewEvent("log", "warning", message, data))


def _message(error: Json | None) -> str:
    return str((error or {}).get("message", FAILED))


def state_of(job: JobRecord) -> JobState:
    """What decides about `job`."""
    named = {field.name: getattr(job, field.name) for field in fields(JobState) if field.name != "trained"}
    return JobState(trained=job.result is not None, **named)
