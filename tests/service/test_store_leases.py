"""Claims, leases and what a controller writes under them: on a real file, from several threads."""

import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy.event import listen

from service.disk import WAITING
from service.errors import InvalidTransition, LeadLost, LeaseLost, StoreFull
from service.job_events import RegistrationBegins, TrainerEnded, TrainerLost, TrainerRuns
from service.records import JobRecord, NewEvent
from service.store import Store

from .conftest import SHA, SIGNATURE, Fill

THREADS = 8
LOG = NewEvent("log", "info", "a line", {})


def claimed(store: Store, owner: str = "one", seconds: float = 60.0) -> JobRecord:
    job = store.claim_job(owner, seconds)
    assert job is not None
    return job


def test_each_waiting_job_is_claimed_by_one_of_eight_threads(store: Store, fill: Fill) -> None:
    data = fill.dataset()
    made = [fill.job(dataset=data).id for _ in range(6)]
    together = Barrier(THREADS)

    def claim_all(number: int) -> list[str]:
        together.wait()
        won = []
        while (job := store.claim_job(f"controller {number}", 60.0)) is not None:
            won.append(job.id)
        return won

    with ThreadPoolExecutor(THREADS) as pool:
        won = [job_id for ids in pool.map(claim_all, range(THREADS)) for job_id in ids]
    assert sorted(won) == sorted(made)
    for job_id in made:
        assert [event.message for event in store.events_after(job_id, 0, 9)] == ["queued", "started"]
        assert store.get_job(job_id).lease_epoch == 1


def test_the_oldest_job_goes_first_and_a_live_lease_is_left_alone(store: Store, fill: Fill) -> None:
    first, second = fill.job(), fill.job()
    assert claimed(store).id == first.id
    assert claimed(store, "two").id == second.id
    assert store.claim_job("three", 60.0) is None
    assert [job.id for job in store.leased_jobs("one")] == [first.id]


def test_priority_comes_first_and_then_who_came_first(store: Store, fill: Fill) -> None:
    data = fill.dataset()
    made = [fill.job(dataset=data, priority=priority).id for priority in (0, 5, -5, 5, 0)]
    order = [made[place] for place in (1, 3, 0, 4, 2)]
    assert [job.id for job in store.queued_jobs(9)] == order
    assert [job.id for job in store.queued_jobs(2)] == order[:2]
    assert [claimed(store).id for _ in made] == order


def test_why_a_job_waits_is_told_once_and_forgotten_at_its_start(store: Store, fill: Fill) -> None:
    job = fill.job()
    for reason in ("waiting for 4 free worker slots",) * 2:
        store.explain_wait(job.id, reason)
    assert store.get_job(job.id).status_reason == reason
    assert [event.message for event in store.events_after(job.id, 1, 9)] == [reason]
    assert claimed(store).status_reason is None
    store.explain_wait(job.id, reason)  # too late
    assert store.get_job(job.id).status_reason is None


def test_a_job_that_was_cancelled_or_paused_since_it_was_seen_is_not_claimed(store: Store, fill: Fill) -> None:
    cancelled, paused = fill.job(), fill.job()
    store.request_cancel(cancelled.id)
    store.request_pause(paused.id)
    assert store.claim_job("one", 60.0, cancelled.id) is None
    assert store.claim_job("one", 60.0, paused.id) is None


def test_a_result_that_comes_after_a_request_to_cancel_is_not_kept(store: Store, fill: Fill) -> None:
    job = fill.job()
    claimed(store)
    store.request_cancel(job.id)
    ended = fill.train(job.id)
    assert (ended.status, ended.result, ended.artifact_sha256) == ("cancelled", None, None)


def test_a_job_being_registered_is_cancelled_at_once_until_mlflow_is_told(store: Store, fill: Fill) -> None:
    early, late = fill.job(), fill.job()
    for job in (early, late):
        claimed(store)
        fill.train(job.id)
    assert store.request_cancel(early.id).status == "cancelled"
    store.apply(late.id, RegistrationBegins(time.time(), 1))
    asked = store.request_cancel(late.id)
    assert (asked.status, asked.cancel_requested) == ("running", True)
    assert store.finish_job(late.id, 1, "succeeded").status == "succeeded"


def test_what_is_asked_many_times_a_second_uses_an_index(store: Store) -> None:
    seen: list[str] = []
    listen(store.database.engine, "before_cursor_execute", lambda *a: seen.append(_explained(store, a[2], a[3])))
    store.queued_jobs(1)
    store.expired_jobs()
    store.jobs_to_publish()
    store.claim_job("one", 60.0)
    plans = [plan for plan in seen if "jobs" in plan]
    assert len(plans) >= 5
    for plan in plans:
        assert "USING INDEX jobs_in_turn" in plan or "USING INDEX jobs_untold" in plan, plan
        assert "TEMP B-TREE" not in plan, plan


def _explained(store: Store, statement: str, parameters: Any) -> str:
    if not statement.startswith("SELECT"):
        return ""
    with closing(sqlite3.connect(str(store.database.engine.url.database))) as connection:
        found = connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
    return "; ".join(row[3] for row in found)


def test_a_lease_that_ran_out_goes_to_the_next_and_the_old_holder_writes_nothing(store: Store, fill: Fill) -> None:
    fill.job()
    old = claimed(store, "old", seconds=-1.0)
    new = claimed(store, "new")
    assert (new.id, new.lease_epoch, new.status) == (old.id, old.lease_epoch + 1, "running")
    before = store.get_job(old.id), store.events_after(old.id, 0, 99), store.last_event_number()
    writes: list[Callable[[], object]] = [
        lambda: store.set_progress(old.id, old.lease_epoch, {"step": 9}, [("loss", 9, 1.0, 1.0)], [LOG], {"loss": 1.0}),
        lambda: store.set_status_reason(old.id, old.lease_epoch, "waiting"),
        lambda: store.set_result(old.id, old.lease_epoch, {}, SHA, {"signature": SIGNATURE}),
        lambda: store.finish_job(old.id, old.lease_epoch, "failed", {"code": "internal", "message": "lost"}),
        lambda: store.apply(old.id, TrainerEnded(time.time(), old.lease_epoch, "cancelled")),
        lambda: store.apply(old.id, TrainerLost(time.time(), old.lease_epoch, "lost")),
        lambda: store.apply(old.id, RegistrationBegins(time.time(), old.lease_epoch)),
    ]
    for write in writes:
        with pytest.raises(LeaseLost):
            write()
    store.renew_leases("old", [old.id], 1000.0)
    assert (store.get_job(old.id), store.events_after(old.id, 0, 99), store.last_event_number()) == before
    assert store.metric_series(old.id) == {}


def test_a_renewed_lease_is_not_claimed(store: Store, fill: Fill) -> None:
    fill.job()
    job = claimed(store, "one", seconds=-1.0)
    store.renew_leases("one", [job.id], 60.0)
    assert store.claim_job("two", 60.0) is None


def test_the_first_write_of_a_point_wins_and_seq_has_no_gap(store: Store, fill: Fill) -> None:
    fill.job()
    job = claimed(store)
    told: list[list[tuple[str, int, float, float]]] = [
        [("loss", 1, 0.5, 10.0), ("loss", 2, 0.4, 11.0)],
        [("loss", 2, 99.0, 99.0), ("accuracy", 2, 0.7, 11.0), ("loss", 3, float("nan"), 12.0)],
        [("loss", 1, 99.0, 99.0), ("loss", 4, 0.2, 13.0), ("loss", 4, 0.1, 14.0)],
    ]
    for points in told:
        store.set_progress(job.id, 1, {}, points)
    assert store.metric_series(job.id) == {
        "accuracy": [(2, 0.7)],
        "loss": [(1, 0.5), (2, 0.4), (3, None), (4, 0.2)],
    }
    waiting = store.unpublished_points(job.id)
    assert [point.seq for point in waiting] == [1, 2, 3, 4, 5]
    assert [point.timestamp for point in waiting] == [10.0, 11.0, 11.0, 12.0, 13.0]
    store.mark_published(job.id, 3)
    store.mark_published(job.id, 2)  # a late answer takes nothing back
    assert [point.seq for point in store.unpublished_points(job.id)] == [4, 5]
    assert [point.seq for point in store.unpublished_points(job.id, 1)] == [4]


def test_progress_is_one_transaction(store: Store, fill: Fill) -> None:
    fill.job()
    job = claimed(store)
    with pytest.raises(Exception, match="not JSON serializable"):
        store.set_progress(job.id, 1, {"step": 7}, [("loss", 7, 0.1, 1.0)], [NewEvent("log", "info", "", {"a": set()})])
    assert store.get_job(job.id) == job
    assert store.metric_series(job.id) == {}


def test_an_end_is_final_and_gives_the_lease_back(store: Store, fill: Fill) -> None:
    fill.job()
    job = claimed(store)
    error = {"code": "diverged", "message": "no numbers any more"}
    ended = store.finish_job(job.id, job.lease_epoch, "failed", error)
    assert (ended.status, ended.error, ended.lease_owner, ended.finished_at is None) == ("failed", error, None, False)
    last = store.events_after(job.id, 0, 99)[-1]
    assert (last.type, last.level, last.data) == ("status", "error", {"status": "failed", "error": error})
    with pytest.raises(LeaseLost):
        store.finish_job(job.id, job.lease_epoch, "succeeded")
    assert store.get_job(job.id).status == "failed"


def test_a_job_cannot_go_where_no_pair_leads(store: Store, fill: Fill) -> None:
    fill.job()
    job = claimed(store)
    with pytest.raises(InvalidTransition):
        store.finish_job(job.id, job.lease_epoch, "queued")
    assert store.get_job(job.id) == job


def test_a_job_that_was_to_pause_for_the_disk_may_end_first(store: Store, fill: Fill) -> None:
    fill.job()
    job = claimed(store)
    store.apply(job.id, TrainerRuns(time.time(), job.lease_epoch, f"{WAITING} at /data"))
    assert store.get_job(job.id).status_reason == f"{WAITING} at /data"
    store.set_result(job.id, job.lease_epoch, {"steps": 9}, SHA, {"signature": SIGNATURE})
    ended = store.get_job(job.id)
    assert (ended.result, ended.waits_for_disk, ended.status_reason) == ({"steps": 9}, None, None)


def test_a_result_is_written_once(store: Store, fill: Fill) -> None:
    fill.job()
    job = claimed(store)
    first = store.set_result(job.id, 1, {"steps": 9}, SHA, {"signature": SIGNATURE})[0]
    again = store.set_result(job.id, 1, {"steps": 10}, "cd" * 32, {"signature": {}})[0]
    assert again == first
    assert (first.result, first.artifact_sha256) == ({"steps": 9}, SHA)
    assert (first.progress or {})["phase"] == "registering"


def test_a_reason_is_told_once_for_as_long_as_it_holds(store: Store, fill: Fill) -> None:
    fill.job()
    job = claimed(store)
    for reason in ("waiting for MLflow", "waiting for MLflow", None, None, "waiting for MLflow"):
        store.set_status_reason(job.id, 1, reason)
    assert [event.message for event in store.events_after(job.id, 2, 99)] == ["waiting for MLflow"] * 2
    assert store.get_job(job.id).status_reason == "waiting for MLflow"


def test_what_mlflow_has_not_been_told_is_to_be_published(store: Store, fill: Fill) -> None:
    fill.job()
    assert store.jobs_to_publish() == []  # nothing to tell of a job that has not started
    job = claimed(store)

    def waits() -> bool:
        return [found.id for found in store.jobs_to_publish()] == [job.id]

    assert waits()
    store.set_run(job.id, "run", "experiment")
    assert not waits()
    store.set_progress(job.id, 1, {}, [("loss", 1, 0.5, 10.0)])
    assert waits()
    store.mark_published(job.id, 1)
    assert not waits()
    fill.succeed(job.id)
    assert waits()
    store.mark_run_ended(job.id)
    assert not waits()


def test_a_job_whose_run_has_ended_is_not_looked_at_again(store: Store, fill: Fill) -> None:
    ended = fill.version("model", 1)
    store.mark_run_ended(ended.id)
    assert store.jobs_to_publish() == []


def test_leases_expire_by_the_clock(store: Store, fill: Fill) -> None:
    fill.job()
    before = time.time()
    job = claimed(store, seconds=30.0)
    assert before + 30 <= (job.lease_expires_at or 0.0) <= time.time() + 30


def test_room_on_the_disk_resumes_what_the_service_has_paused_and_no_other(store: Store, fill: Fill) -> None:
    data, full = fill.dataset(), f"{WAITING}: 1.0 MB are free"
    theirs, ours, waits = (fill.job(dataset=data).id for _ in range(3))
    store.request_pause(theirs)
    held = claimed(store)
    assert held.id == ours
    store.apply(ours, TrainerRuns(time.time(), 1, full))
    assert (store.get_job(ours).status, store.get_job(ours).status_reason) == ("running", full)
    store.apply(ours, TrainerEnded(time.time(), 1, "paused"))
    store.explain_wait(waits, full)
    assert [store.get_job(job_id).status_reason for job_id in (theirs, ours, waits)] == [None, full, full]
    store.take_lead("one", 60.0, None)
    with pytest.raises(LeadLost):
        store.led_by("another").room_again()
    assert store.get_job(ours).status == "paused"
    for _ in range(2):
        store.led_by("one").room_again()
        found = [store.get_job(job_id) for job_id in (theirs, ours, waits)]
        assert [(job.status, job.status_reason) for job in found] == [
            ("paused", None),
            ("queued", None),
            ("queued", None),
        ]
    told = [event.message for event in store.events_after(ours, 0, 9)]
    assert told == ["queued", "started", full, f"paused: {full}", "resumed: the disk has room again"]


def test_a_full_disk_is_told_and_nothing_is_written(store: Store, fill: Fill) -> None:
    """SQLite's own limit of a database's size gives the very error that a full disk gives."""
    job = fill.job()

    def small(connection: sqlite3.Connection, _record: Any) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    listen(store.database.engine, "connect", small)
    store.database.engine.dispose()

    def create_all() -> None:
        for number in range(100):
            store.create_job(f"job_{number}", "n", job.dataset_id, {"x": "x" * 5000}, {}, {}, None)

    with pytest.raises(StoreFull, match=r"fallline\.db"):
        create_all()
    made = {each.id for each in store.list_jobs(100).data}
    assert made == {job.id, *(f"job_{k}" for k in range(len(made) - 1))}
