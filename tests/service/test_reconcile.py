"""The controller's decisions."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.reconcile import (
    LOST_TRAINERS_ALLOWED,
    OVERTAKING_SECONDS,
    Choice,
    Deployable,
    Slots,
    Waiting,
    after_lost_trainer,
    bounds,
    choose,
    demand,
    deploy_decision,
    may_claim,
    pause_after_lost_trainer,
    workers_for,
)

SIZES = st.integers(1, 64)
WANTED = st.one_of(st.just("auto"), SIZES)


@given(wanted=WANTED, shards=SIZES, slots=SIZES, taken=st.integers(0, 64), cpus=SIZES)
def test_workers_fit_the_slots_and_the_shards(
    wanted: int | str, shards: int, slots: int, taken: int, cpus: int
) -> None:
    free = max(0, slots - taken)
    workers = workers_for(wanted, shards, Slots(slots, free, cpus))
    if workers is not None:
        assert 1 <= workers <= min(shards, free)
        assert wanted == "auto" or workers == min(wanted, shards, slots)
    elif free:
        assert wanted != "auto"
    # Whoever waits does not wait for ever: an empty cluster takes every job.
    assert workers_for(wanted, shards, Slots(slots, slots, cpus)) is not None


def test_auto_takes_a_core_each() -> None:
    assert workers_for("auto", shards=8, slots=Slots(16, 16, 2)) == 2
    assert workers_for("auto", shards=8, slots=Slots(16, 1, 4)) == 1
    assert workers_for("auto", shards=1, slots=Slots(16, 16, 4)) == 1


RANGE = {"min": 2, "max": 6}


def test_a_range_begins_with_its_least_and_has_more_where_cores_are_idle() -> None:
    assert bounds(RANGE, shards=4) == (2, 4)
    assert workers_for(RANGE, shards=8, slots=Slots(16, 16, 4)) == 4
    assert workers_for(RANGE, shards=8, slots=Slots(16, 16, 8)) == 6
    assert workers_for(RANGE, shards=8, slots=Slots(16, 13, 8)) == 5
    assert workers_for(RANGE, shards=8, slots=Slots(16, 12, 4)) == 2  # all cores have a worker
    assert workers_for(RANGE, shards=8, slots=Slots(16, 1, 4)) is None
    assert workers_for(RANGE, shards=8, slots=Slots(1, 1, 1)) == 1  # the cluster has no more


def test_a_job_calls_for_as_many_workers_as_it_may_have() -> None:
    assert demand(RANGE, shards=8, has=0) == demand(RANGE, shards=8, has=3) == 6
    assert demand(3, shards=2, has=0) == 2
    assert demand("auto", shards=8, has=0) == 1
    assert demand("auto", shards=8, has=4) == 4  # which it keeps


def test_claims_wait_for_the_job_that_waits() -> None:
    assert may_claim(running=1, limit=4, waiting_for_slots=0)
    assert not may_claim(running=4, limit=4, waiting_for_slots=0)
    assert not may_claim(running=1, limit=4, waiting_for_slots=1)


def waiting(name: str, workers: int | str = 1, seconds: float = 0.0) -> Waiting:
    return Waiting(name, workers, 8, seconds)


def test_the_first_that_fits_is_next_and_those_before_it_are_told_why_not() -> None:
    slots = Slots(8, 3, 4)
    assert choose([waiting("a", 2), waiting("b", 1)], slots) == Choice("a", {})
    found = choose([waiting("a", 4), waiting("b", 8), waiting("c", 3), waiting("d", 5)], slots)
    assert found == Choice("c", {"a": "waiting for 4 free worker slots", "b": "waiting for 8 free worker slots"})
    assert "--resources" in choose([waiting("a", 2)], Slots(0, 0, 4)).reasons["a"]  # a cluster that is not prepared
    assert choose([waiting("a", "auto")], Slots(8, 0, 4)) == Choice(None, {"a": "waiting for a free worker slot"})
    assert choose([], slots) == Choice(None, {})


def test_nothing_is_started_on_a_full_disk() -> None:
    found = choose([waiting("a", 1), waiting("b", 9)], Slots(8, 8, 4), "no room")
    assert found == Choice(None, {"a": "no room", "b": "no room"})


def test_a_large_job_is_overtaken_for_a_while_and_then_slots_are_kept_for_it() -> None:
    slots = Slots(8, 3, 4)
    for seconds, start in ((OVERTAKING_SECONDS, "b"), (OVERTAKING_SECONDS + 1, None)):
        assert choose([waiting("a", 8, seconds), waiting("b", 1)], slots).start == start
    assert choose([waiting("a", 8, 1e9), waiting("b", 1)], Slots(8, 8, 4)).start == "a"


@given(st.lists(st.tuples(WANTED, st.floats(0, 200)), max_size=8), SIZES, st.integers(0, 64))
def test_nobody_starves(queue: list[tuple[int | str, float]], size: int, taken: int) -> None:
    slots = Slots(size, max(0, size - taken), 4)
    jobs = [waiting(str(place), *job) for place, job in enumerate(queue)]
    choice = choose(jobs, slots)
    if choice.start is not None:
        assert all(job.seconds <= OVERTAKING_SECONDS for job in jobs[: int(choice.start)])
        assert set(choice.reasons) == {job.id for job in jobs[: int(choice.start)]}
    if jobs:  # whoever is first is started by an empty cluster
        assert choose(jobs, Slots(size, size, 4)).start == "0"


def test_a_job_that_kills_its_trainers_ends() -> None:
    assert [after_lost_trainer(n) for n in (1, LOST_TRAINERS_ALLOWED, LOST_TRAINERS_ALLOWED + 1)] == [True, True, False]
    pauses = [pause_after_lost_trainer(n + 1) for n in range(LOST_TRAINERS_ALLOWED)]
    assert (pauses[0], sum(pauses)) == (0.0, 30.0)


OLD = Deployable(1, "classification", "ab", {"validation": 0.2, "seed": 0}, {"validation_accuracy": 0.9})
NEW = replace(OLD, version=2, metrics={"validation_accuracy": 0.91})


@pytest.mark.parametrize(
    ("policy", "candidate", "deployed", "deploy", "reason"),
    [
        ("never", NEW, None, False, "never"),
        ("always", NEW, OLD, True, "always"),
        ("if_better", NEW, None, True, "nothing was deployed"),
        ("if_better", NEW, OLD, True, "0.91"),
        ("if_better", OLD, NEW, False, "0.9"),
        ("if_better", replace(NEW, metrics=OLD.metrics), OLD, False, "0.9"),
        ("if_better", replace(NEW, dataset_sha256="cd"), OLD, False, "another dataset"),
        ("if_better", replace(NEW, split={"validation": 0.1, "seed": 0}), OLD, False, "another split"),
        ("if_better", replace(NEW, task="regression"), OLD, False, "another task"),
        ("if_better", replace(NEW, metrics={}), OLD, False, "no validation_accuracy"),
        ("if_better", NEW, NEW, True, "already"),
    ],
)
def test_deploy_policies(
    policy: str, candidate: Deployable, deployed: Deployable | None, deploy: bool, reason: str
) -> None:
    decision = deploy_decision(policy, candidate, deployed)
    assert decision.deploy is deploy
    assert reason in decision.reason


def test_regression_is_judged_by_r2() -> None:
    old = replace(OLD, task="regression", metrics={"validation_r2": 0.5, "validation_loss": 1.0})
    better = replace(old, version=2, metrics={"validation_r2": 0.6, "validation_loss": 2.0})
    assert deploy_decision("if_better", better, old).deploy
    assert not deploy_decision("if_better", old, better).deploy
