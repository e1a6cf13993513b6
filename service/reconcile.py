"""What the controller does next, as pure functions of what it sees: no I/O, so that tests can try every case."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LOST_TRAINERS_ALLOWED = 5


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


def workers_for(wanted: int | str, shards: int, slots: int, free_slots: int, cpus: int) -> int | None:
    """How many workers a job starts with; None: not enough slots are free now, so it waits.

    A worker without a shard would idle: never more than `shards`. "auto" takes what is free, up to one a core; a number
    is waited for, unless the cluster has never that many slots. The weights do not depend on the answer.
    """
    if free_slots < 1:
        return None
    if wanted == "auto":
        return max(1, min(shards, free_slots, cpus))
    needed = max(1, min(int(wanted), shards, slots))
    return needed if needed <= free_slots else None


def may_claim(running: int, limit: int, waiting_for_slots: int, free_slots: int) -> bool:
    """May another job be claimed? Not while one waits for slots: it came first."""
    return running < limit and waiting_for_slots == 0 and free_slots > 0


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
