"""The controller's decisions."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.reconcile import (
    LOST_TRAINERS_ALLOWED,
    Deployable,
    after_lost_trainer,
    deploy_decision,
    may_claim,
    workers_for,
)

SIZES = st.integers(1, 64)


@given(wanted=st.one_of(st.just("auto"), SIZES), shards=SIZES, slots=SIZES, taken=st.integers(0, 64), cpus=SIZES)
def test_workers_fit_the_slots_and_the_shards(
    wanted: int | str, shards: int, slots: int, taken: int, cpus: int
) -> None:
    free = max(0, slots - taken)
    workers = workers_for(wanted, shards, slots, free, cpus)
    if workers is not None:
        assert 1 <= workers <= min(shards, free)
        assert wanted == "auto" or workers == min(wanted, shards, slots)
    elif free:
        assert wanted != "auto"
    # Whoever waits does not wait for ever: an empty cluster takes every job.
    assert workers_for(wanted, shards, slots, slots, cpus) is not None


def test_auto_takes_a_core_each() -> None:
    assert workers_for("auto", shards=8, slots=16, free_slots=16, cpus=2) == 2
    assert workers_for("auto", shards=8, slots=16, free_slots=1, cpus=4) == 1
    assert workers_for("auto", shards=1, slots=16, free_slots=16, cpus=4) == 1


def test_claims_wait_for_the_job_that_waits() -> None:
    assert may_claim(running=1, limit=4, waiting_for_slots=0, free_slots=3)
    assert not may_claim(running=4, limit=4, waiting_for_slots=0, free_slots=3)
    assert not may_claim(running=1, limit=4, waiting_for_slots=1, free_slots=3)
    assert not may_claim(running=1, limit=4, waiting_for_slots=0, free_slots=0)


def test_a_job_that_kills_its_trainers_ends() -> None:
    assert [after_lost_trainer(n) for n in (1, LOST_TRAINERS_ALLOWED, LOST_TRAINERS_ALLOWED + 1)] == [True, True, False]


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
