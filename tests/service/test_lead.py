"""Which of several controllers works: on a real store, with clocks of the tests' own."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from service.artifacts import ArtifactStore
from service.disk import WAITING
from service.errors import LeadLost
from service.lead import RENEWALS, Lead
from service.parts import Part
from service.process_identity import identity, is_gone
from service.publisher import Publisher
from service.store import Store
from service.tracked import TrackingDown, TrackingError, TrackingRefused

from .conftest import Fill

SECONDS = 30.0
ROOT = Path(__file__).parents[2]


class Clocks:
    """The process's clock and the wall's, moved by hand."""

    def __init__(self, wall: float) -> None:
        self.mine, self.wall = 100.0, wall


def lead(store: Store, owner: str, clocks: Clocks, gone: bool = False) -> Lead:
    return Lead(
        store, owner, SECONDS, lambda other: gone or other == "nobody", lambda: clocks.mine, lambda: clocks.wall
    )


@pytest.fixture
def clocks(store: Store) -> Clocks:
    """The wall's clock starts at the store's time."""
    first = store.take_lead("nobody", -1.0, None)
    assert first is not None
    return Clocks(first.expires_at + 1.0)


def test_one_leads_and_the_other_stands_by_until_the_lease_has_run_out(store: Store, clocks: Clocks) -> None:
    one, two = lead(store, "one", clocks), lead(store, "two", clocks)
    assert one.take()
    assert not two.take()
    assert (one.is_held, two.is_held) == (True, False)
    clocks.mine += SECONDS - 1
    assert not two.take()
    clocks.mine += 1
    assert two.take()
    with pytest.raises(LeadLost):
        one.hold()
    two.hold()


def test_one_that_seems_to_have_ended_long_ago_has_missed_two_renewals_at_least(store: Store, clocks: Clocks) -> None:
    """A machine that starts again, or a wall's clock that is wrong: who is alive shows it soon."""
    one, two = lead(store, "one", clocks), lead(store, "two", clocks)
    assert one.take()
    clocks.wall += 3600.0
    assert not two.take()
    clocks.mine += SECONDS / RENEWALS + 1
    one.hold()
    clocks.mine += SECONDS / RENEWALS
    assert not two.take()
    clocks.mine += 2 * SECONDS / RENEWALS
    assert two.take()


def test_a_clock_an_hour_ahead_does_not_make_a_lead_last_an_hour(store: Store, clocks: Clocks) -> None:
    one, two = lead(store, "one", clocks), lead(store, "two", clocks)
    assert one.take()
    clocks.wall -= 3600.0
    assert not two.take()
    clocks.mine += SECONDS
    assert two.take()


def test_one_that_is_known_to_be_gone_is_followed_at_once(store: Store, clocks: Clocks) -> None:
    assert lead(store, "one", clocks).take()
    assert lead(store, "two", clocks, gone=True).take()


def test_a_held_lead_is_renewed_in_time_and_not_more_often(store: Store, clocks: Clocks) -> None:
    one = lead(store, "one", clocks)
    assert one.take()
    taken = store.leader()
    one.hold()
    assert store.leader() == taken
    clocks.mine += SECONDS / RENEWALS + 1
    one.hold()
    renewed = store.leader()
    assert taken is not None
    assert renewed is not None
    assert renewed.epoch == taken.epoch
    assert renewed.expires_at > taken.expires_at


def test_one_that_was_stopped_knows_that_it_may_have_been_followed(store: Store, clocks: Clocks) -> None:
    one = lead(store, "one", clocks)
    assert one.take()
    clocks.mine += SECONDS + 1
    assert not one.is_held
    one.hold()  # nobody has
    assert one.is_held


def test_who_has_not_taken_it_does_not_hold_it(store: Store, clocks: Clocks) -> None:
    with pytest.raises(LeadLost):
        lead(store, "one", clocks).hold()


def test_of_eight_that_want_it_at_once_one_gets_it(store: Store) -> None:
    together = Barrier(8)

    def take(number: int) -> bool:
        together.wait()
        return store.take_lead(f"controller {number}", SECONDS, None) is not None

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(8))) == 1


def test_who_takes_over_gets_the_jobs_and_who_does_not_lead_claims_none(store: Store, fill: Fill) -> None:
    running, queued = fill.job(), fill.job()
    first = store.take_lead("one", SECONDS, None)
    held = store.claim_job("one", SECONDS)
    assert held is not None
    assert held.id == running.id
    assert store.take_lead("two", SECONDS, first) is not None
    for job_id in (None, queued.id, running.id):
        with pytest.raises(LeadLost):
            store.led_by("one").claim_job("one", SECONDS, job_id)
    assert store.get_job(queued.id).status == "queued"
    assert [job.id for job in store.expired_jobs()] == [running.id]
    taken = store.led_by("two").claim_job("two", SECONDS, running.id)
    assert taken is not None
    assert (taken.lease_owner, taken.lease_epoch) == ("two", held.lease_epoch + 1)


LATE: dict[str, Callable[[Store, str], object]] = {
    "a claim": lambda store, job_id: store.claim_job("one", SECONDS),
    "a run": lambda store, job_id: store.set_run(job_id, "run", "experiment"),
    "the end of a run": lambda store, job_id: store.mark_run_ended(job_id),
    "published points": lambda store, job_id: store.mark_published(job_id, 1),
    "a version": lambda store, job_id: store.record_version(job_id, 1),
    "a deployment": lambda store, job_id: store.deploy("model", 1, job_id),
    "a move that MLflow has heard of": lambda store, job_id: store.set_alias_synced("model", 1),
    "a move that was made in MLflow": lambda store, job_id: store.alias_moved("model", 1),
}


@pytest.mark.parametrize("what", LATE)
def test_what_a_controller_writes_when_another_leads_is_refused_in_its_own_transaction(
    store: Store, fill: Fill, what: str
) -> None:
    job, led = fill.version("model", 1), store.led_by("one")
    first = store.take_lead("one", SECONDS, None)
    led.mark_published(job.id, 0)  # while it leads, it may
    store.take_lead("two", SECONDS, first)
    before = store.get_job(job.id), store.get_model("model")
    with pytest.raises(LeadLost):
        LATE[what](led, job.id)
    assert (store.get_job(job.id), store.get_model("model")) == before


def test_a_publisher_tells_mlflow_nothing_while_another_may_lead(store: Store, fill: Fill, tmp_path: Path) -> None:
    fill.job()
    store.claim_job("one", SECONDS)
    nobody: Any = None  # whoever asks it anything fails
    leads = [False, True]
    publisher = Publisher(store, ArtifactStore(tmp_path), lambda: nobody, lambda: leads[0])
    publisher.once(nobody)
    leads.pop(0)
    with pytest.raises(AttributeError, match="check"):
        publisher.once(nobody)


def test_a_job_that_waits_for_the_disk_says_so_though_mlflow_is_down(store: Store, fill: Fill, tmp_path: Path) -> None:
    job, full = fill.job(), f"{WAITING}: 1.0 MB are free"
    store.claim_job("one", SECONDS)
    store.set_status_reason(job.id, 1, full)
    nobody: Any = None
    publisher = Publisher(store, ArtifactStore(tmp_path), lambda: nobody)
    publisher._say(replace(store.get_job(job.id), point_count=1), "waiting for MLflow since noon")
    assert store.get_job(job.id).status_reason == full


@pytest.mark.parametrize("error", [TrackingDown, TrackingRefused])
def test_a_job_says_that_mlflow_is_away_or_refuses_and_the_publisher_asks_again(
    store: Store, fill: Fill, tmp_path: Path, error: type[TrackingError]
) -> None:
    """It refuses all alike where a key or the name of its host is wrong."""
    job = fill.job()
    store.claim_job("one", SECONDS)
    store.set_progress(job.id, 1, {}, [("train_loss", 1, 0.5, 0.0)])
    asked: Any = Away(error)
    publisher = Publisher(store, ArtifactStore(tmp_path), lambda: asked)
    publisher.part = Part("up", 0.0)
    publisher.once(asked)
    assert publisher.part.state == "down"
    reason = store.get_job(job.id).status_reason or ""
    assert reason.startswith("MLflow refuses: 403" if error is TrackingRefused else "waiting for MLflow since")


class Away:
    """An MLflow that does nothing."""

    def __init__(self, error: type[TrackingError]) -> None:
        self.error = error

    def check(self) -> None:
        raise self.error("check", "403: Invalid Host header")


def test_a_process_is_gone_when_it_has_ended_and_never_before() -> None:
    program = "from service.process_identity import identity; print(identity(), flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert child.stdout is not None
    known = child.stdout.readline().strip()
    assert not is_gone(known)
    assert not is_gone(identity())
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(known), "though nobody has waited for it"
    child.communicate()
    assert is_gone(known)


def test_another_process_of_the_same_number_is_another_one() -> None:
    host, pid, started, namespace, boot = identity().split(":")
    assert is_gone(":".join((host, pid, str(int(started) + 1), namespace, boot)))


@pytest.mark.parametrize("part", [3, 4])
def test_of_other_machines_and_containers_nothing_is_known(part: int) -> None:
    parts = identity().split(":")
    parts[1], parts[part] = "999999999", "another"
    assert not is_gone(":".join(parts))
