"""Who takes part: as many as are wanted, between steps, with an end to every wait."""

import errno
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from core.parameters import weights_sha256
from worker.aggregator import ParameterAggregator
from worker.crew import AGAIN_S, GATHER_S, JOIN_S, LATE_ASKS, Crew
from worker.errors import Cancelled, RemoteLost
from worker.gradient_worker import GradientWorker
from worker.plan import Attached, StepPlan, TrainerEvent

STEPS = 12  # of the fixture `wanted`


def shards(plan: StepPlan, count: int) -> StepPlan:
    return replace(plan, sampling=replace(plan.sampling, shards=count))


class Place:
    """A crew over processes in memory, a clock that is set by hand, and what happens while it waits."""

    def __init__(self, site: Any, plan: StepPlan, workers: int, look: Callable[[], None] = lambda: None) -> None:
        self.site, self.now, self.events = site(plan, workers), 0.0, list[TrainerEvent]()
        self.transport, self.waits = self.site.transport, 0
        self.transport.wait = self.wait
        self.while_waiting: Callable[[], None] = lambda: None
        self.transport.is_ready = lambda reference: self.readiness(reference)
        self.readiness: Callable[[Any], bool] = lambda reference: True
        self.crew = Crew(plan, self.site.workers, self.transport, self.events.append, lambda: self.now, look)

    def wait(self, references: Any, seconds: float) -> bool:
        self.waits += 1
        self.now += seconds
        self.while_waiting()
        assert self.waits < 1000, "it waits for ever"
        return any(map(self.readiness, references))

    def nobody(self) -> None:
        """There are no more workers to be had."""
        self.transport.recruit = lambda beside: None

    @property
    def names(self) -> list[str]:
        return [worker.name for worker in self.crew.members]


class ForeignAggregator(ParameterAggregator):
    """On a machine whose kernels round otherwise."""

    def numerics(self) -> str:
        return "other"


def test_aggregators_that_compute_other_bits_take_no_part(site: Any, plan: StepPlan) -> None:
    place = Place(site, plan, 1)
    place.crew.admit(wait=True)
    kinds = ParameterAggregator, ForeignAggregator, ParameterAggregator
    all_of_them = [replace(site.plain(f"a{number}"), target=kind()) for number, kind in enumerate(kinds)]
    assert place.crew.alike(all_of_them) == [all_of_them[0], all_of_them[2]]
    (event,) = place.events
    assert (event.type, event.level) == ("fault", "warning")
    assert event.message == "a1 computes other bits than the rest, and takes no part"
    assert event.data == {"worker": "a1", "numerics": "other", "expected": place.crew.numerics}
    assert place.transport.dismissed == []  # it is the pool's, for jobs of its like
    with pytest.raises(RemoteLost, match="no aggregator computes the bits of numpy"):
        place.crew.alike(all_of_them[1:2])


def test_scaled_down_the_surplus_leaves_between_steps_alive(site: Any, plan: StepPlan, wanted: str) -> None:
    place = site(plan, 3)
    exchange = place.open()
    exchange.run_steps(4)
    exchange.scale(1)
    exchange.run_steps(STEPS - 4)
    assert exchange.workers == 1
    assert weights_sha256(exchange.parameters()) == wanted
    assert [worker.calls.count("gradients") for worker in place.workers] == [STEPS, 4, 4]
    assert [worker.calls[-1] for worker in place.workers[1:]] == ["detach", "detach"]
    assert (sorted(place.transport.released), place.transport.dismissed) == (["w1", "w2"], [])
    assert exchange.failures == 0
    (event,) = place.events
    assert (event.type, event.level, event.data["from"], event.data["to"]) == ("log", "info", 3, 1)
    assert event.message.startswith("scaled from 3 to 1 workers within ")


def test_scaled_up_others_join_when_they_are_ready(site: Any, plan: StepPlan, wanted: str) -> None:
    place = site(plan, 1)
    place.transport.make = lambda name: replace(site.plain(name), ready=False)
    exchange = place.open()
    exchange.run_steps(3)
    exchange.scale(3)
    exchange.run_steps(3)
    assert (exchange.workers, len(place.transport.recruits), place.events) == (1, 2, [])
    for recruit in place.transport.recruits:
        recruit.ready = True
    exchange.run_steps(STEPS - 6)
    assert exchange.workers == 3
    assert [event.data["to"] for event in place.events] == [3]
    assert weights_sha256(exchange.parameters()) == wanted


def test_never_more_than_shards_and_never_none(site: Any, plan: StepPlan) -> None:
    place = site(plan, 2)
    exchange = place.open()
    for asked, found in ((99, 3), (3, 3), (0, 1)):
        exchange.scale(asked)
        exchange.run_steps(1)
        assert exchange.workers == found
    assert [(event.data["from"], event.data["to"]) for event in place.events] == [(2, 3), (3, 1)]


def test_a_lost_worker_is_replaced_up_to_what_is_wanted_now(site: Any, plan: StepPlan) -> None:
    place = site(plan, 3)
    exchange = place.open()
    exchange.scale(2)
    exchange.run_steps(1)
    place.workers[0].alive = False
    exchange.run_steps(3)
    assert (exchange.workers, exchange.failures, len(place.transport.recruits)) == (2, 1, 1)


def recruiting(site: Any, plan: StepPlan, wanted: int) -> Place:
    """One takes part, and the rest of those that are wanted are not ready."""
    place = Place(site, plan, 1)
    place.crew.admit(wait=True)
    place.readiness = lambda reference: False
    place.crew.scale(wanted)
    place.crew.call_up()
    return place


def test_who_is_on_the_way_is_sent_back_when_fewer_are_wanted(site: Any, plan: StepPlan) -> None:
    place = recruiting(site, plan, 3)
    place.crew.scale(1)
    assert (place.transport.dismissed, place.names) == (["recruit1", "recruit0"], ["w0"])
    place.crew.call_up()
    assert len(place.transport.recruits) == 2


def test_where_no_worker_is_to_be_had_it_is_tried_again_later(site: Any, plan: StepPlan) -> None:
    place = Place(site, plan, 1)
    place.crew.admit(wait=True)
    recruit, asked = place.transport.recruit, []

    def refuse(beside: bool) -> None:
        asked.append(place.now)

    place.transport.recruit = refuse
    place.crew.scale(3)
    for _ in range(5):
        place.crew.call_up()
    assert asked == [0.0]
    place.now += AGAIN_S
    place.transport.recruit = recruit
    place.crew.call_up()
    place.crew.admit(wait=False)
    assert place.names == ["w0", "recruit0", "recruit1"]


def test_where_somebody_who_is_asked_is_silent_steps_do_not_wait_for_every_try(site: Any, plan: StepPlan) -> None:
    place = Place(site, plan, 1)
    place.crew.admit(wait=True)
    asked = []

    def refuse(beside: bool) -> None:
        asked.append(place.now)
        place.now += 1.0  # so long the silent one was waited for

    place.transport.recruit = refuse
    place.crew.scale(3)
    began = place.now
    while place.now < began + 100:
        place.crew.call_up()
        place.now += 0.01
    assert len(asked) == 5


def test_without_any_worker_a_slow_try_is_followed_by_the_next(site: Any, plan: StepPlan) -> None:
    place = Place(site, plan, 1)
    place.crew.admit(wait=True)
    recruit = place.transport.recruit

    def slow(beside: bool) -> Any:
        place.now += 11.0
        return recruit() if place.now > began + 30 else None

    place.transport.recruit = slow
    place.crew.scale(2)
    began = place.now
    place.crew.call_up()
    place.crew.lose(place.crew.members, 5, RemoteLost("w0"), place.now)
    assert place.names[:1] == ["recruit0"]
    assert place.now < began + 60


class FullDisk(GradientWorker):
    """There is no room for the dataset where it is."""

    def attach(self, plan: StepPlan) -> Attached:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_recruit_that_cannot_attach_is_told_of_and_does_not_end_the_job(site: Any, plan: StepPlan) -> None:
    place = Place(site, plan, 1)
    place.crew.admit(wait=True)
    place.transport.make = lambda name: replace(site.plain(name), target=FullDisk())
    place.crew.scale(2)
    for _ in range(3):
        place.crew.call_up()
        place.crew.admit(wait=False)
    assert (place.names, place.transport.dismissed, place.crew.wanted) == (["w0"], ["recruit0"], 1)
    (event,) = (event for event in place.events if event.type == "fault")
    assert (event.level, event.data["worker"]) == ("warning", "recruit0")
    assert "recruit0 takes no part" in event.message
    assert "No space left" in event.message


@pytest.mark.parametrize("full", [0, 1])
def test_of_two_that_begin_one_may_be_unable_whichever(site: Any, plan: StepPlan, full: int) -> None:
    place = Place(site, plan, 2)
    place.site.workers[full].target = FullDisk()
    crew = Crew(plan, place.site.workers, place.transport, place.events.append, lambda: place.now)
    crew.admit(wait=True)
    assert ([worker.name for worker in crew.members], crew.wanted) == ([f"w{1 - full}"], 1)


def test_where_nobody_else_is_there_it_ends_the_job_with_its_reason(site: Any, plan: StepPlan) -> None:
    place = Place(site, plan, 1)
    place.site.workers[0].target = FullDisk()
    crew = Crew(plan, place.site.workers, place.transport, place.events.append, lambda: place.now)
    with pytest.raises(OSError, match="No space left"):
        crew.admit(wait=True)


def test_a_recruit_that_does_not_come_up_is_given_up(site: Any, plan: StepPlan) -> None:
    place = recruiting(site, plan, 2)
    place.transport.recruits[0].alive = False
    place.now += JOIN_S + 1
    place.crew.call_up()
    place.now += AGAIN_S
    place.crew.call_up()
    assert place.transport.dismissed == ["recruit0"]
    assert [remote.name for remote in place.transport.recruits] == ["recruit0", "recruit1"]
    (event,) = place.events
    assert "recruit0 did not come up within 60 s" in event.message
    assert place.crew.failures == 0


def test_a_recruit_that_takes_long_is_waited_for(site: Any, plan: StepPlan) -> None:
    """It fetches a large dataset, or finds out whether what its node has kept is whole."""
    place = recruiting(site, plan, 2)
    for _ in range(2):
        place.now += JOIN_S + 1
        place.crew.call_up()
    assert (place.transport.dismissed, len(place.transport.recruits)) == ([], 1)
    assert [event.level for event in place.events] == ["info", "info"]
    assert "recruit0 is not ready after 60 s more" in place.events[0].message
    place.readiness = lambda reference: True
    place.now += JOIN_S + 1
    place.crew.call_up()
    assert len(place.events) == 2, "it is ready, and only waits to be let in"
    place.crew.admit(wait=False)
    assert [worker.name for worker in place.crew.members] == ["w0", "recruit0"]


def test_a_recruit_that_lives_and_never_comes_up_is_given_up_some_day(site: Any, plan: StepPlan) -> None:
    place = recruiting(site, plan, 2)
    for _ in range(LATE_ASKS):
        place.now += JOIN_S + 1
        place.crew.call_up()
    assert place.transport.dismissed == []
    place.now += JOIN_S + 1
    place.crew.call_up()
    assert place.transport.dismissed == ["recruit0"]
    assert "recruit0 did not come up within 1860 s" in place.events[-1].message
    assert place.crew.failures == 0


def test_a_job_begins_without_who_is_late_where_others_have_come(site: Any, plan: StepPlan) -> None:
    place = Place(site, plan, 3)
    late = next(each.call for each in place.crew._joining if each.worker.name == "w1")
    place.readiness = lambda reference: reference is not late
    place.crew.admit(wait=True)
    assert place.names == ["w0", "w2"]
    assert GATHER_S < place.now < 2 * GATHER_S
    place.readiness = lambda reference: True
    place.crew.admit(wait=False)
    assert place.names == ["w0", "w2", "w1"]


def test_waiting_without_anybody_is_told_of_and_ends_when_one_comes(site: Any, plan: StepPlan) -> None:
    place = Place(site, plan, 1)
    place.readiness = lambda reference: place.now > 5 * GATHER_S
    place.crew.admit(wait=True)
    assert place.names == ["w0"]
    (event,) = place.events
    assert (event.type, event.level, event.data["wanted"]) == ("log", "warning", 1)
    assert "waiting for a worker" in event.message


@pytest.mark.parametrize("lost", [False, True], ids=["at the start", "after the last was lost"])
def test_waiting_can_be_cancelled(site: Any, plan: StepPlan, lost: bool) -> None:
    def look() -> None:
        if place.waits > 3:
            raise Cancelled

    place = Place(site, plan, 1, look)
    place.nobody()
    if lost:
        place.crew.admit(wait=True)
        place.site.workers[0].alive = False
        with pytest.raises(Cancelled):
            place.crew.lose(place.crew.members, 1, RuntimeError(), place.now)
    else:
        place.readiness = lambda reference: False
        with pytest.raises(Cancelled):
            place.crew.admit(wait=True)
    place.crew.close()
    assert place.transport.dismissed == ["w0"]
