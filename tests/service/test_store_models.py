"""Versions and deployments: one version a job, every move of `production` written down, MLflow's alias in step."""

import pytest

from service.errors import Conflict, NotFound
from service.store import Store

from .conftest import SHA, SIGNATURE, Fill

OTHER = {"inputs": [{"name": "y", "type": "number", "required": True}], "outputs": SIGNATURE["outputs"]}


def test_a_version_is_recorded_once_and_made_of_its_job(store: Store, fill: Fill) -> None:
    job = fill.version("digits", 1)
    again = store.record_version(job.id, 1)
    assert store.list_versions("digits") == [again]
    assert (again.job_id, again.artifact_sha256, again.signature, again.dataset_sha256) == (job.id, SHA, SIGNATURE, SHA)
    assert store.get_job(job.id).model_version == 1
    assert store.get_model("digits").production_version is None


def test_a_job_without_a_result_or_a_model_registers_nothing(store: Store, fill: Fill) -> None:
    for job in (fill.job(), fill.job(model=None)):
        with pytest.raises(Conflict):
            store.record_version(job.id, 1)
    assert store.list_models(10).data == []
    with pytest.raises(NotFound):
        store.get_version("model", 1)


def test_deploy_and_roll_back_are_moves_that_history_keeps(store: Store, fill: Fill) -> None:
    for number in (1, 2, 3):
        fill.version("digits", number)
    for number in (1, 2, 2, 3):
        store.deploy("digits", number, "ann")
    assert store.rollback("digits", "ben").production_version == 2
    assert store.undeploy("digits", "cho").production_version is None
    assert store.undeploy("digits", "cho").production_version is None
    moves = [(m.action, m.actor, m.from_version, m.to_version) for m in store.list_deployments("digits", 99)]
    assert moves == [
        ("delete", "cho", 2, None),
        ("rollback", "ben", 3, 2),
        ("deploy", "ann", 2, 3),
        ("deploy", "ann", 1, 2),
        ("deploy", "ann", None, 1),
    ]
    assert store.last_deployment_number() == 5


def test_there_is_nothing_to_roll_back_to_before_the_second_version(store: Store, fill: Fill) -> None:
    fill.version("digits", 1)
    for _ in range(2):
        with pytest.raises(Conflict) as refusal:
            store.rollback("digits", "ann")
        assert refusal.value.code == "nothing_to_roll_back_to"
        store.deploy("digits", 1, "ann")


def test_a_pause_in_service_is_not_what_a_rollback_goes_back_to(store: Store, fill: Fill) -> None:
    for number in (1, 2):
        fill.version("digits", number)
        store.deploy("digits", number, "ann")
    store.undeploy("digits", "ann")
    store.deploy("digits", 2, "ann")
    assert store.rollback("digits", "ann").production_version == 1


def test_another_signature_is_deployed_only_by_force(store: Store, fill: Fill) -> None:
    fill.version("digits", 1)
    fill.version("digits", 2, signature=OTHER)
    assert store.deploy("digits", 2, "ann").production_version == 2  # nobody calls it yet
    with pytest.raises(Conflict) as refusal:
        store.deploy("digits", 1, "ann")
    assert refusal.value.code == "signature_changed"
    assert store.get_model("digits").production_version == 2
    assert store.deploy("digits", 1, "ann", force=True).production_version == 1


def test_only_what_is_there_is_deployed(store: Store, fill: Fill) -> None:
    fill.version("digits", 1)
    for name, version in (("digits", 2), ("letters", 1)):
        with pytest.raises(NotFound):
            store.deploy(name, version, "ann")
    assert store.last_deployment_number() == 0


def test_a_move_waits_until_mlflow_has_followed_and_the_last_one_counts(store: Store, fill: Fill) -> None:
    for number in (1, 2):
        fill.version("digits", number)
    fill.version("letters", 1)
    assert store.pending_aliases() == []
    store.deploy("digits", 1, "ann")
    [seen] = store.pending_aliases()
    assert (seen.name, seen.production_version) == ("digits", 1)
    store.deploy("digits", 2, "ann")  # while MLflow is being told of the first
    store.set_alias_synced("digits", seen.deployment_number)
    [seen] = store.pending_aliases()
    assert seen.production_version == 2
    store.set_alias_synced("digits", seen.deployment_number)
    store.set_alias_synced("digits", 1)  # a late answer takes nothing back
    assert store.pending_aliases() == []


def test_an_alias_that_was_moved_in_mlflow_is_followed_and_not_sent_back(store: Store, fill: Fill) -> None:
    for number in (1, 2):
        fill.version("digits", number)
    store.deploy("digits", 1, "ann")
    assert store.alias_moved("digits", 2) is None  # our own move is still on its way
    store.set_alias_synced("digits", 1)
    moved = store.alias_moved("digits", 2)
    assert moved is not None
    assert moved.production_version == 2
    assert store.pending_aliases() == []
    assert store.alias_moved("digits", 2) is None
    assert store.alias_moved("digits", 7) is None  # not ours
    taken_away = store.alias_moved("digits", None)
    assert taken_away is not None
    assert taken_away.production_version is None
    assert [move.action for move in store.list_deployments("digits", 9)] == ["followed", "followed", "deploy"]
