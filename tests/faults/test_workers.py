"""Workers of a real service are killed, stopped, made to exit and to fail: no bit, no step and no point differs.

Judged by the invariants alone, never by time. `make faults` kills 200 workers over at least 20 jobs and prints seeds
and recovery times; `make test` kills some. FALLLINE_FAULTS_SEED (0 by default) draws other moments.
"""

import logging
import os
import random
import signal
import time
from contextlib import suppress
from typing import Any

import pytest

from worker.shared_memory import SILENCE_S, STOP_S

from .kills import PATIENCE_S, Kill, kill_workers, seconds_until_committed, summary
from .picture import JobPicture, started

pytestmark = pytest.mark.system
log = logging.getLogger(__name__)

SEED = int(os.environ.get("FALLLINE_FAULTS_SEED", "0"))
ALL, QUICK = (200, 20, 600), (10, 2, 400)  # kills, jobs at least, epochs of 30 steps
MOST_JOBS = 20  # times as many jobs as planned, where they are over before all are killed that are to be


@pytest.fixture(scope="module")
def spec(spec: dict[str, Any], all_faults: bool) -> dict[str, Any]:
    epochs = (ALL if all_faults else QUICK)[2]
    return {**spec, "training": {**spec["training"], "epochs": epochs}}


def on(spec: dict[str, Any], workers: int) -> dict[str, Any]:
    return {**spec, "distribution": {**spec["distribution"], "workers": workers}}


def test_workers_killed_at_random_moments_cost_no_bit_and_no_step(
    running: Any, spec: dict[str, Any], undisturbed: JobPicture, all_faults: bool
) -> None:
    kills, least_jobs, _ = ALL if all_faults else QUICK
    share, seeds = -(-kills // least_jobs), iter(range(SEED, SEED + MOST_JOBS * least_jobs))
    lost, went_on, full = list[Kill](), list[float](), list[float]()
    while len(lost) < kills:
        seed = next(seeds)
        workers = random.Random(seed).randint(2, 4)
        job_id = running.submit(on(spec, workers))
        killed = kill_workers(running, job_id, seed, min(share, kills - len(lost)), is_patient=all_faults)
        job = running.succeeded(job_id, undisturbed)
        told = [name for event in running.losses(job_id) for name in event["data"]["workers"]]
        assert len(told) == len(set(told)) == job["result"]["worker_failures"] >= len(killed), f"seed {seed}"
        committed = seconds_until_committed(killed, running.local.endpoints["mlflow"], job["mlflow"]["run_id"])
        complete = [kill.full_s for kill in killed if kill.full_s is not None]
        log.info("%s", summary(f"seed {seed}: {len(killed)} kills among {workers} workers: the next step", committed))
        log.info("%s; load %.1f", summary(f"seed {seed}: full strength", complete), os.getloadavg()[0])
        lost, went_on, full = [*lost, *killed], [*went_on, *committed], [*full, *complete]
    assert seed - SEED + 1 >= least_jobs
    log.info("%s", summary(f"{len(lost)} kills over {seed - SEED + 1} jobs: the next step", went_on))
    log.info("%s; %d cores", summary("full strength", full), os.cpu_count())


def test_a_worker_that_is_stopped_for_a_while_changes_nothing(
    running: Any, spec: dict[str, Any], undisturbed: JobPicture
) -> None:
    draw = random.Random(SEED)
    job_id = running.submit(spec)
    running.job(job_id, lambda job: running.step(job) > 0, PATIENCE_S)
    running.wait_for(running.seated, PATIENCE_S, "workers that take part")
    pid = draw.choice(running.seated())
    os.kill(pid, signal.SIGSTOP)
    time.sleep(draw.uniform(0.1, 2))  # the experiment itself: shorter than silence is borne
    os.kill(pid, signal.SIGCONT)
    running.succeeded(job_id, undisturbed)
    assert running.faults(job_id) == []


def test_a_write_of_a_worker_that_was_taken_for_hung_reaches_no_later_step(
    running: Any, spec: dict[str, Any], undisturbed: JobPicture, all_faults: bool
) -> None:
    """It is continued as soon as it is told that it was lost, and around the moment at which that is decided."""
    if not all_faults:
        pytest.skip("silence is borne for 20 s: `make faults` waits for it")
    for seed in range(SEED, SEED + 3):
        draw = random.Random(seed)
        job_id = running.submit(spec)
        running.job(job_id, lambda job: running.step(job) > 0, PATIENCE_S)
        running.wait_for(running.seated, PATIENCE_S, "workers that take part")
        pid = draw.choice(running.seated())
        since, stopped_at = started(pid), time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        until = stopped_at + (PATIENCE_S if seed == SEED else draw.uniform(SILENCE_S, SILENCE_S + 2 * STOP_S))
        while not running.faults(job_id) and time.monotonic() < until:
            time.sleep(0.05)  # polls a condition
        if started(pid) == since:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        seconds, faults = time.monotonic() - stopped_at, len(running.faults(job_id))
        log.info("seed %d: stopped for %.1f s, taken for hung: %s", seed, seconds, bool(faults))
        running.succeeded(job_id, undisturbed)
        assert faults == 1 or seed > SEED


def test_a_worker_that_exits_costs_no_bit(running: Any, spec: dict[str, Any], undisturbed: JobPicture) -> None:
    with running.inside("exit") as exits:
        job_id = running.submit(spec)
        running.job(job_id, lambda job: running.step(job) > 0, PATIENCE_S)
        exits()
    job = running.succeeded(job_id, undisturbed)
    assert job["result"]["worker_failures"] == 1


def test_a_worker_without_memory_fails_its_job_with_the_reason_and_no_other(
    running: Any, spec: dict[str, Any], undisturbed: JobPicture
) -> None:
    with running.inside("memory") as runs_out:
        job_id = running.submit({**spec, "training": {**spec["training"], "epochs": 10_000}})
        running.job(job_id, lambda job: running.step(job) > 0, PATIENCE_S)
        runs_out()
    job = running.job(job_id, running.ended, PATIENCE_S)
    assert (job["status"], job["error"]["code"]) == ("failed", "out_of_memory")
    assert "7.28 TiB" in job["error"]["message"]
    running.check(job_id)
    running.succeeded(running.submit(spec), undisturbed)  # on the same workers
