"""What the controller does next, as pure functions of what it sees: no I/O, so that tests can try every case."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LOST_TRAINERS_ALLOWED = 5
OVERTAKING_SECONDS = 60.0


@dataclass(frozen=True)
class Slots:
    """Worker slots of the cluster, those that no job holds, and its CPUs."""

    all: int
    free: int
    cpus: int


@dataclass(frozen=True)
class Waiting:
    """A queued job: what it asks for, and for how long it has been seen not to fit."""

    id: str
    workers: int | str
    shards: int
    seconds: float


@dataclass(frozen=True)
class Choice:
    """The queued job to start, if any; and why others, by id, are not started though it is their turn."""

    start: str | None
    reasons: Mapping[str, str]


@dataclass(frozen=True)
class Deployable:
    """A version as the policy `if_better` sees it. `metrics`: the job's, by name."""

    version: int
    task: str
    dataset_sha256: str
    split: Mapping[str, Any]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Decision:
    """Whether to deploy, and why, in words for the job's events."""

    deploy: bool
    reason: str


def workers_for(wanted: int | str, shards: int, slots: Slots) -> int | None:
    """How many workers a job starts with; None: not enough slots are free now, so it waits.

    A worker without a shard would idle: never more than `shards`. "auto" takes what is free, up to one a core; a number
    is waited for, unless the cluster has never that many slots. The weights do not depend on the answer.
    """
    needed = slots_needed(wanted, shards, slots)
    if slots.free < needed:
        return None
    return max(1, min(shards, slots.free, slots.cpus)) if wanted == "auto" else needed


def slots_needed(wanted: int | str, shards: int, slots: Slots) -> int:
    """The least number of slots that the job starts with."""
    return 1 if wanted == "auto" else max(1, min(int(wanted), shards, slots.all))


def reason_to_wait(wanted: int | str, shards: int, slots: Slots) -> str:
    """Why a job waits that does not fit, in words for its `status_reason`."""
    needed = slots_needed(wanted, shards, slots)
    return "waiting for a free worker slot" if needed == 1 else f"waiting for {needed} free worker slots"


def choose(queue: Sequence[Waiting], slots: Slots, shortage: str | None = None) -> Choice:
    """Which of the queued jobs, in their turn, is started next: none while there is a `shortage` of room on the disks.

    One that does not fit is overtaken by those behind it that do, for OVERTAKING_SECONDS: so a large job does not leave
    slots idle for long, and small ones do not keep it out for ever. From then on slots that become free wait for it.
    """
    reasons: dict[str, str] = {}
    if shortage is not None:
        return Choice(None, dict.fromkeys((job.id for job in queue), shortage))
    for job in queue:
        if workers_for(job.workers, job.shards, slots) is not None:
            return Choice(job.id, reasons)
        reasons[job.id] = reason_to_wait(job.workers, job.shards, slots)
        if job.seconds > OVERTAKING_SECONDS:
            break
    return Choice(None, reasons)


def may_claim(running: int, limit: int, waiting_for_slots: int) -> bool:
    """May a queued job be claimed? Not while one waits for slots that was started before and lost its trainer."""
    return running < limit and waiting_for_slots == 0


def after_lost_trainer(losses: int) -> bool:
    """Start the job again after its trainer was lost for the `losses`-th time? Else it has failed."""
    return losses <= LOST_TRAINERS_ALLOWED


def deploy_decision(policy: str, candidate: Deployable, deployed: Deployable | None) -> Decision:
    """The job's deploy policy: never, always or if_better, against the version that is deployed now."""
    if policy == "never":
        return Decision(False, "the spec says deploy: never")
    if policy == "always" or deployed is None:
        return Decision(True, "nothing was deployed" if deployed is None else "the spec says deploy: always")
    if deployed.version == candidate.version:
        return Decision(True, "it is deployed already")
    for what, theirs, ours in (
        ("task", deployed.task, candidate.task),
        ("dataset", deployed.dataset_sha256, candidate.dataset_sha256),
        ("split", deployed.split, candidate.split),
    ):
        if theirs != ours:
            return Decision(False, f"version {deployed.version} was validated on another {what}: not comparable")
    metric = "validation_accuracy" if candidate.task == "classification" else "validation_r2"
    before, after = deployed.metrics.get(metric), candidate.metrics.get(metric)
    if before is None or after is None:
        return Decision(False, f"there is no {metric} to compare with version {deployed.version}")
    comparison = f"{metric} {after:.6g}, version {deployed.version} has {before:.6g}"
    return Decision(after > before, comparison)
