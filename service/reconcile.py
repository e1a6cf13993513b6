"""What the controller does next, as pure functions of what it sees: no I/O, so that tests can try every case."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Wanted = int | str | Mapping[str, int]  # workers: a number, `auto`, or {"min": 1, "max": 8}
LOST_TRAINERS_ALLOWED = 5
OVERTAKING_SECONDS = 60.0


@dataclass(frozen=True)
class Slots:
    """Worker slots of the cluster, those that no job holds, and its CPUs."""

    all: int
    free: int
    cpus: int

    @property
    def idle_cpus(self) -> int:
        """CPUs on which no job's worker computes, were each to have one of its own."""
        return max(self.cpus - (self.all - self.free), 0)


@dataclass(frozen=True)
class Waiting:
    """A queued job: what it asks for, and for how long it has been seen not to fit."""

    id: str
    workers: Wanted
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


def bounds(wanted: Wanted, shards: int) -> tuple[int, int]:
    """The fewest and the most workers that a job is to have: a worker without a shard would idle, so never more."""
    if wanted == "auto":
        return 1, shards
    least, most = (wanted["min"], wanted["max"]) if isinstance(wanted, Mapping) else (int(wanted), int(wanted))
    return min(least, shards), min(most, shards)


def demand(wanted: Wanted, shards: int, has: int) -> int:
    """For how many workers a job has work, of which it `has` some: as many as it may have; "auto" takes what there is,
    and calls for no more than one."""
    return max(has, 1 if wanted == "auto" else bounds(wanted, shards)[1])


def workers_for(wanted: Wanted, shards: int, slots: Slots) -> int | None:
    """How many workers a job starts with; None: not enough slots are free now, so it waits.

    "auto" takes what is free, up to one a core; a number is waited for, and so is the least of a range, unless the
    cluster has not that many slots; what a range has beyond that, it has where cores are idle. The weights do not
    depend on the answer.
    """
    needed, most = slots_needed(wanted, shards, slots), bounds(wanted, shards)[1]
    if slots.free < needed:
        return None
    return max(needed, min(most, slots.free, slots.cpus if wanted == "auto" else slots.idle_cpus))


def slots_needed(wanted: Wanted, shards: int, slots: Slots) -> int:
    """The least number of slots that the job starts with."""
    return max(1, min(bounds(wanted, shards)[0], slots.all))


def reason_to_wait(wanted: Wanted, shards: int, slots: Slots) -> str:
    """Why a job waits that does not fit, in words for its `status_reason`."""
    if slots.all == 0:
        return (
            "no node of the Ray cluster offers worker_slots: start its nodes with --resources='{\"worker_slots\": 8}'"
        )
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


def pause_after_lost_trainer(losses: int) -> float:
    """Seconds until the job is started again after its trainer was lost for the `losses`-th time: at once, then later
    and later, 30 s over all that are allowed. Ray may take 20 to notice that a node is gone, and has it used till then.
    """
    return 0.0 if losses <= 1 else 2.0 ** (losses - 1)


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
