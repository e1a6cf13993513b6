"""Workers killed at random moments of a job, and how long it took until work went on."""

import os
import random
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

import httpx

from .picture import Json, tracked_points

DELAY_S = 1.0  # a kill comes at a moment drawn evenly from so long after the job is as it should be
PATIENCE_S = 240.0  # for what takes a second on an idle machine


@dataclass(frozen=True)
class Kill:
    """One worker killed at `at` (Unix seconds) in `step`, the one that was not committed yet.

    `full_s`: until as many workers took part as the job wants, as the API told; None: nobody waited for it.
    """

    at: float
    step: int
    full_s: float | None


def kill_workers(running: Any, job_id: str, seed: int, most: int, is_patient: bool) -> list[Kill]:
    """Kill workers of the running job one after the other until it ends, `most` at most; the kills that it tells of.

    `is_patient`: never before as many take part again as the job wants; else as soon as it has gone on.
    """
    draw, found, told = random.Random(seed), list[Kill](), 0
    running.job(job_id, lambda job: running.step(job) > 0 or running.ended(job), PATIENCE_S)
    while len(found) < most:
        time.sleep(draw.uniform(0, DELAY_S))  # the experiment itself: any moment will do
        at = _kill_one(running, job_id, draw)
        event = None if at is None else _told_of(running, job_id, told)
        if at is None or event is None:
            break  # it was at its end: nothing was left to be done again
        told = event["id"]
        found.append(_gone_on(running, job_id, at, int(event["data"]["step"]), is_patient))
    return found


def seconds_until_committed(kills: Iterable[Kill], mlflow: str, run_id: str) -> list[float]:
    """For each kill, until a step that was not committed before it is: by the first point of the loss from there on.

    An upper bound: the trainer measures a point when the chunk of steps in which it lies, of 0.2 s, is done.
    """
    with httpx.Client(base_url=f"{mlflow}/api/2.0/mlflow", timeout=30) as client:
        points = sorted(
            (int(p["step"]), int(p["timestamp"]) / 1000) for p in tracked_points(client, run_id, "train_loss")
        )
    after = [next((measured for step, measured in points if step >= kill.step), None) for kill in kills]
    return [measured - kill.at for kill, measured in zip(kills, after, strict=True) if measured is not None]


def summary(name: str, seconds: list[float]) -> str:
    """`name after 0.31 s (median), 0.82 s at most, of 200`"""
    if not seconds:
        return f"{name} not measured"
    return f"{name} after {median(seconds):.2f} s (median), {max(seconds):.2f} s at most, of {len(seconds)}"


def _kill_one(running: Any, job_id: str, draw: random.Random) -> float | None:
    """Kill one of those that take part, as soon as there is one; None: the job has ended before."""
    until = time.monotonic() + PATIENCE_S
    while not (seated := running.seated()):
        assert time.monotonic() < until, f"{job_id}: no worker takes part"
        if running.ended(running.client.jobs.show(job_id)):
            return None
        time.sleep(0.02)  # polls a condition
    at = time.time()
    try:
        os.kill(draw.choice(seated), signal.SIGKILL)
    except ProcessLookupError:
        return None if running.ended(running.client.jobs.show(job_id)) else _kill_one(running, job_id, draw)
    return at


def _told_of(running: Any, job_id: str, told: int) -> Json | None:
    """The event of the kill, which comes after event number `told`; None: the job has ended without any."""

    def is_told() -> bool:
        return bool(running.losses(job_id, told)) or running.ended(running.client.jobs.show(job_id))

    running.wait_for(is_told, PATIENCE_S, f"a word of {job_id} about the killed worker")
    return next(iter(running.losses(job_id, told)), None)


def _gone_on(running: Any, job_id: str, at: float, step: int, is_patient: bool) -> Kill:
    """The kill, as soon as the job has gone on, with all its workers where `is_patient`, or has ended."""

    def is_full(job: Json) -> bool:
        return bool(job["progress"]["workers"] == job["spec"]["distribution"]["workers"])

    def has_gone_on(job: Json) -> bool:
        # A committed `step` tells that the progress is younger than the kill.
        return running.ended(job) or (running.step(job) >= step and (is_full(job) or not is_patient))

    job = running.job(job_id, has_gone_on, PATIENCE_S)
    return Kill(at, step, time.time() - at if is_patient and not running.ended(job) else None)
