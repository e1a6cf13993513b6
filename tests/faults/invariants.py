"""The invariants I1 to I7, judged on a picture of the service. Pure, but for `check`, which looks until they hold.

- I1 an acknowledged job is never lost
- I2 each step is applied exactly once in the lineage of the final weights
- I3 the final weights are those of the undisturbed run
- I4 the metric series has no gap and no duplicate, in the store and in MLflow
- I5 exactly one registered version for each succeeded job that asked for one
- I6 no orphan process, actor or shared memory
- I7 every job is queued, paused, final, or runs under a live lease
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

from .picture import JobPicture, Picture, Series

FINAL = frozenset({"succeeded", "failed", "cancelled"})
STATUSES = FINAL | {"queued", "running", "paused"}
SETTLED_S = 30.0  # what is being cleaned up has so long: a killed process's children, a publisher's last pass
_LOOK_S = 0.25
_SHOWN = 5  # of many steps, in a message
_BY_STEP, _BY_EPOCH = frozenset({"train_loss", "learning_rate"}), "validation_"


def check(take: Callable[[], Picture], undisturbed: JobPicture | None = None) -> Picture:
    """Look until all invariants hold, or SETTLED_S have passed: an AssertionError then names what does not."""
    until = time.monotonic() + SETTLED_S
    while found := violations(picture := take(), undisturbed):
        assert time.monotonic() < until, "\n".join(found)
        time.sleep(_LOOK_S)  # polls a condition
    return picture


def violations(picture: Picture, undisturbed: JobPicture | None = None) -> list[str]:
    """What is wrong, one line each. `undisturbed`: a job of the same spec that nothing has happened to."""
    found = [f"I1: {job_id} was acknowledged and is not there" for job_id in picture.acknowledged - picture.jobs.keys()]
    for seen in picture.jobs.values():
        found += _lease(seen, picture.taken_at)
        if seen.tracked is not None and seen.job["status"] == "succeeded":
            found += [*_steps(seen), *_series(seen), *_version(seen)]
            found += _sameness(seen, undisturbed) if undisturbed is not None else []
    return [*found, *_leftovers(picture)]


def _steps(seen: JobPicture) -> Iterator[str]:
    """I2: the steps that were applied are 1 to the last one, as the intervals of the training loss show."""
    job, where = seen.job, seen.job["id"]
    planned, applied = job["progress"]["steps"], job["result"]["steps"]
    if applied != planned and not job["result"].get("stopped_early"):
        yield f"I2: {where} has applied {applied} steps of {planned}"
    if job["progress"]["step"] != applied:
        yield f"I2: {where} tells of step {job['progress']['step']}, its result of {applied}"
    every = job["spec"]["training"]["log_every_steps"]
    wanted = sorted({*range(every, applied + 1, every), applied})
    for name in sorted(_BY_STEP):
        yield from _compared(f"I2: {where}, {name}", [step for step, _ in seen.series.get(name, [])], wanted)


def _series(seen: JobPicture) -> Iterator[str]:
    """I4: every series once for each of its steps, the same in both places."""
    job, where, tracked = seen.job, seen.job["id"], seen.tracked or {}
    epoch = job["progress"]["steps"] // job["progress"]["epochs"]
    ends = list(range(epoch, job["result"]["steps"] + 1, epoch))
    for name, points in sorted(seen.series.items()):
        steps = [step for step, _ in points]
        wanted = ends if name.startswith(_BY_EPOCH) else sorted(set(steps))
        yield from _compared(f"I4: {where}, {name} in the store", steps, wanted)
        if name in tracked:
            yield from _compared(f"I4: {where}, {name} in MLflow", [step for step, _ in tracked[name]], steps)
            yield from _values(f"I4: {where}, {name} in MLflow and in the store", tracked, seen.series, name)
    for name in sorted(seen.series.keys() ^ tracked.keys()):
        yield f"I4: {where}, {name} is in {'MLflow' if name in tracked else 'the store'} alone"


def _version(seen: JobPicture) -> Iterator[str]:
    """I5"""
    job = seen.job
    wanted = () if job["spec"]["model"] is None else ((job["model"] or {}).get("version"),)
    if not wanted == seen.listed_versions == seen.tracked_versions:
        told = f"the job tells of {wanted}, the API lists {seen.listed_versions}, MLflow {seen.tracked_versions}"
        yield f"I5: {job['id']}: {told}; expected the same {len(wanted)}"


def _sameness(seen: JobPicture, undisturbed: JobPicture) -> Iterator[str]:
    """I3, and of I2 that each step was the same: its loss is."""
    ours, theirs = (each.job["result"]["weights_sha256"] for each in (seen, undisturbed))
    if ours != theirs:
        yield f"I3: {seen.job['id']} has ended with {ours}, undisturbed with {theirs}"
    for name in sorted(seen.series.keys() | undisturbed.series.keys()):
        yield from _values(f"I2: {seen.job['id']} and undisturbed, {name}", seen.series, undisturbed.series, name)


def _lease(seen: JobPicture, now: float) -> Iterator[str]:
    """I7"""
    status, expires_at = seen.job["status"], seen.lease_expires_at
    if status not in STATUSES:
        yield f"I7: {seen.job['id']} is {status}, which is no status"
    elif status == "running" and (expires_at is None or expires_at < now):
        told = "without a lease" if expires_at is None else f"under a lease that ended {now - expires_at:.1f} s ago"
        yield f"I7: {seen.job['id']} runs {told}"


def _leftovers(picture: Picture) -> Iterator[str]:
    """I6. An actor is a process, and one that is at work shows it in its title: where no job runs, there is none."""
    for pid, name in sorted(picture.escaped.items()):
        yield f"I6: process {pid} is nobody's child: {name}"
    for name in sorted(picture.files):
        yield f"I6: /dev/shm/{name} is left"
    workers = {pid: name for pid, name in picture.processes.items() if "GradientWorker" in name}
    if len(workers) > picture.worker_slots:
        yield f"I6: {len(workers)} workers on {picture.worker_slots} slots"
    if all(seen.job["status"] != "running" for seen in picture.jobs.values()):
        for pid, name in sorted(workers.items()):
            if "GradientWorker." in name:
                yield f"I6: no job runs, and process {pid} is at work: {name}"


def _compared(where: str, found: list[int], wanted: list[int]) -> Iterator[str]:
    """Gaps, duplicates and strangers among steps."""
    if found == wanted:
        return
    missing, strange = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    twice = sorted({step for step in found if found.count(step) > 1}) if len(found) > len(set(found)) else []
    told = [f"{what} {_few(which)}" for what, which in (("lacks", missing), ("has beside", strange)) if which]
    told += [f"has twice {_few(twice)}"] if twice else []
    yield f"{where}: {', '.join(told) or 'the steps are out of order'}"


def _values(where: str, one: Series, other: Series, name: str) -> Iterator[str]:
    """Steps that both have, with other values."""
    known: dict[int, Any] = dict(other.get(name, []))
    differing = [step for step, value in one.get(name, []) if step in known and known[step] != value]
    if differing:
        yield f"{where}: other values at steps {_few(differing)}"


def _few(steps: list[int]) -> str:
    return ", ".join(map(str, steps[:_SHOWN])) + (f" and {len(steps) - _SHOWN} more" if len(steps) > _SHOWN else "")
