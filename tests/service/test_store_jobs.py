"""Jobs in the store as their users see them."""

import pytest

from service.errors import Conflict, InvalidTransition, NotFound
from service.store import Store

from .conftest import Fill


def test_a_job_is_what_was_submitted_and_waits(store: Store, fill: Fill) -> None:
    made = fill.job("digits", metadata={"team": "vision"}, model="digits")
    assert store.get_job(made.id) == made
    assert (made.status, made.metadata, made.model_name) == ("queued", {"team": "vision"}, "digits")
    assert [(event.type, event.data) for event in store.events_after(made.id, 0, 9)] == [
        ("status", {"status": "queued"})
    ]


def test_asking_a_running_job_to_cancel_is_a_flag_and_one_event(store: Store, fill: Fill) -> None:
    job = fill.job()
    store.claim_job("one", 60.0)
    for _ in range(3):
        asked = store.request_cancel(job.id)
        assert (asked.status, asked.cancel_requested) == ("running", True)
    assert [event.message for event in store.events_after(job.id, 0, 9)] == ["queued", "started", "asked to cancel"]
    store.finish_job(job.id, 1, "cancelled")
    assert store.request_cancel(job.id).status == "cancelled"
    assert len(store.events_after(job.id, 0, 9)) == 4


def test_a_waiting_job_is_cancelled_at_once_and_never_claimed(store: Store, fill: Fill) -> None:
    job = fill.job()
    assert store.request_cancel(job.id).status == "cancelled"
    assert store.request_cancel(job.id).status == "cancelled"
    assert store.claim_job("one", 60.0) is None


def test_what_has_ended_otherwise_is_not_cancelled(store: Store, fill: Fill) -> None:
    job = fill.version("model", 1)
    with pytest.raises(InvalidTransition):
        store.request_cancel(job.id)
    assert store.get_job(job.id).cancel_requested is False


def test_only_an_ended_job_is_deleted_and_with_all_that_is_its(store: Store, fill: Fill) -> None:
    job = fill.job()
    with pytest.raises(Conflict):
        store.delete_job(job.id)
    held = store.claim_job("one", 60.0)
    assert held is not None
    store.set_progress(job.id, 1, {}, [("loss", 1, 0.5, 1.0)])
    with pytest.raises(Conflict):
        store.delete_job(job.id)
    fill.succeed(job.id)
    store.delete_job(job.id)
    with pytest.raises(NotFound):
        store.get_job(job.id)
    assert store.events_after(job.id, 0, 9) == []
    assert store.metric_series(job.id) == {}


def test_lists_obey_every_filter_at_once(store: Store, fill: Fill) -> None:
    data = fill.dataset()
    wanted = fill.job("a", data, {"team": "vision", "run.no": "1"})
    others = [fill.job("b", data, {"team": "vision", "run.no": "1"}), fill.job("a", data, {"team": "audio"})]
    store.request_cancel(fill.job("a", data, {"team": "vision", "run.no": "1"}).id)
    found = store.list_jobs(10, None, "queued", "a", {"team": "vision", "run.no": "1"})
    assert [job.id for job in found.data] == [wanted.id]
    assert [job.id for job in store.list_jobs(10, after=others[1].id).data] == [others[0].id, wanted.id]
    assert store.count_jobs(frozenset({"queued"})) == 3


@pytest.mark.parametrize("key", ['a"b', "a'b", "$.a", "a b", "[0]", "\\", '"', "%", "ä", "a\nb"])
def test_metadata_of_any_name_can_be_asked_for(store: Store, fill: Fill, key: str) -> None:
    wanted = fill.job(metadata={key: "1"})
    fill.job(metadata={"other": "1"})
    assert [job.id for job in store.list_jobs(10, metadata={key: "1"}).data] == [wanted.id]
    assert store.list_jobs(10, metadata={key: "2"}).data == []
