"""The exchange over objects under losses: the same bits, each step once, until there are too many."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.parameters import weights_sha256
from worker.crew import FAILURE_WINDOW_S, FAILURES_ALLOWED
from worker.dataset import DatasetError
from worker.errors import RemoteLost, TooManyFailures
from worker.gradient_worker import GradientWorker
from worker.object_exchange import AHEAD
from worker.plan import Attached, StepPlan

STEPS = 12  # of the fixture `wanted`
Dies = Callable[[str, tuple[Any, ...]], str]


def at_step(step: int, fate: str = "before") -> Dies:
    """Death in the gradients of `step`."""
    return lambda method, arguments: fate if method == "gradients" and arguments[0] == step else ""


def in_call(name: str, fate: str = "before") -> Dies:
    return lambda method, _: fate if method == name else ""


class Foreign(GradientWorker):
    """A worker on a machine whose kernels round otherwise."""

    def attach(self, plan: StepPlan) -> Attached:
        found = super().attach(plan)
        return replace(found, numerics=f"{found.numerics}-other")


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("step", [1, 2, 7, STEPS])
@pytest.mark.parametrize("fate", ["before", "after"])
def test_a_lost_worker_changes_no_bit(
    site: Any, plan: StepPlan, wanted: str, workers: int, step: int, fate: str
) -> None:
    place = site(plan, workers)
    place.workers[0].dies = at_step(step, fate)
    exchange = place.open()
    reports = [report for count in (1, STEPS - 3, 2) for report in exchange.run_steps(count)]
    assert [report.step for report in reports] == list(range(1, STEPS + 1))
    assert weights_sha256(exchange.parameters()) == wanted
    assert (exchange.failures, exchange.workers) == (1, workers)
    (event,) = place.events
    assert (event.type, event.level) == ("fault", "warning")
    assert event.data["workers"] == ["w0"]
    assert event.data["step"] == step
    assert f"lost w0 in step {step}" in event.message


def test_several_at_once(site: Any, plan: StepPlan, wanted: str) -> None:
    place = site(plan, 3)
    for worker in place.workers:
        worker.dies = at_step(4)
    exchange = place.open()
    exchange.run_steps(STEPS)
    assert weights_sha256(exchange.parameters()) == wanted
    assert exchange.failures == 3


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 60), st.sampled_from(["before", "after"])), max_size=6),
    st.lists(st.integers(0, 5), min_size=1, max_size=8),
    st.integers(0, 3),
)
def test_any_run_of_losses_changes_no_bit(
    site: Any, plan: StepPlan, wanted: str, workers: int, fates: list[tuple[int, str]], chunks: list[int], late: int
) -> None:
    """Workers die at whatever call, attaching and evaluating included; recruits join sooner or later."""
    place, calls, at = site(plan, workers), 0, dict(fates)
    unseen = 0  # who dies as it joins, and is not ready in time, is not missed

    def dies(method: str, arguments: tuple[Any, ...]) -> str:
        nonlocal calls, unseen
        calls += 1
        unseen += calls in at and method == "attach"
        return at.get(calls, "")

    def make(name: str) -> Any:
        remote = site.plain(name)
        remote.dies = dies
        return remote

    place.transport.make = make
    for worker in place.workers:
        worker.dies = dies
    exchange = place.open()
    reports = []
    for number, count in enumerate([*chunks, STEPS]):
        for recruit in place.transport.recruits:
            recruit.ready = number >= late
        reports += exchange.run_steps(min(count, STEPS - len(reports)))
        exchange.evaluate("validation")
    assert [report.step for report in reports] == list(range(1, STEPS + 1))
    assert weights_sha256(exchange.parameters()) == wanted
    deaths = len([call for call in at if 0 < call <= calls])
    assert deaths - unseen <= exchange.failures <= deaths
    assert place.aggregator.calls.count("apply_parts") == STEPS


def test_a_report_that_was_lost_on_its_way_is_asked_for_again(site: Any, plan: StepPlan, wanted: str) -> None:
    """The aggregator has applied the step; it is not applied twice, and its report is not missed."""
    place = site(plan, 2)
    exchange = place.open()
    get, lost = place.transport.get, []

    def get_all_but_one(references: list[Any]) -> list[Any]:
        if place.aggregator.calls.count("apply_parts") == 5 and not lost:
            lost.append(True)
            place.workers[1].alive = False
            raise RemoteLost("w1")
        return get(references)

    place.transport.get = get_all_but_one
    reports = [report for _ in range(STEPS) for report in exchange.run_steps(1)]
    assert lost
    assert [report.step for report in reports] == list(range(1, STEPS + 1))
    assert weights_sha256(exchange.parameters()) == wanted


@pytest.mark.parametrize("hung", [True, False], ids=["hung", "busy"])
def test_in_silence_everybody_is_asked_whether_they_live(site: Any, plan: StepPlan, wanted: str, hung: bool) -> None:
    """Who does not answer is killed for it, as the transport's `alive` has it; who answers is waited for."""
    place = site(plan, 2)
    exchange = place.open()
    asked, silent = [], iter([False, False])

    def alive(remotes: Sequence[Any]) -> set[str]:
        asked.append([remote.name for remote in remotes])
        for remote in remotes:
            remote.alive &= not (hung and remote.name == "w1")
        return {remote.name for remote in remotes if remote.alive}

    place.transport.wait = lambda references, seconds: next(silent, True)
    place.transport.alive = alive
    reports = exchange.run_steps(6) + exchange.run_steps(STEPS - 6)
    assert asked[:2] == [["w0", "w1", "aggregator0"]] * 2  # at once
    assert [report.step for report in reports] == list(range(1, STEPS + 1))
    assert exchange.failures == int(hung)
    assert weights_sha256(exchange.parameters()) == wanted


def test_a_worker_lost_in_an_evaluation(site: Any, plan: StepPlan) -> None:
    place, undisturbed = site(plan, 2), site(plan, 1).open()
    place.workers[1].dies = in_call("evaluations")
    exchange = place.open()
    for each in (exchange, undisturbed):
        each.run_steps(2)
    assert exchange.evaluate("validation").tobytes() == undisturbed.evaluate("validation").tobytes()
    assert exchange.failures == 1


def test_the_loss_of_the_aggregator_ends_it(site: Any, plan: StepPlan) -> None:
    place = site(plan, 2)
    place.aggregator.dies = lambda method, arguments: "before" if method == "apply_parts" and arguments[0] == 3 else ""
    exchange = place.open()
    with pytest.raises(RemoteLost, match="aggregator"):
        exchange.run_steps(STEPS)
    for call in (exchange.keep_best, exchange.parameters, lambda: exchange.evaluate("validation")):
        with pytest.raises(RemoteLost, match="aggregator"):
            call()
    assert place.events == []
    exchange.close()  # lets the workers go all the same
    assert [worker.calls[-1] for worker in place.workers] == ["detach", "detach"]


def test_with_the_aggregator_gone_nobody_is_recruited_for_the_workers(site: Any, plan: StepPlan) -> None:
    place = site(plan, 2)
    place.workers[0].dies = at_step(1)
    exchange = place.open()
    place.aggregator.alive = False
    with pytest.raises(RemoteLost):
        exchange.run_steps(1)
    assert (place.events, place.transport.recruits) == ([], [])


def test_a_result_that_is_lost_though_everybody_lives_ends_it(site: Any, plan: StepPlan) -> None:
    place = site(plan, 2)
    exchange = place.open()

    def lose(references: list[Any]) -> list[Any]:
        raise RemoteLost("the object store")

    place.transport.get = lose
    with pytest.raises(RemoteLost, match="the object store"):
        exchange.run_steps(1)


def test_an_error_of_a_living_worker_is_no_loss(site: Any, plan: StepPlan) -> None:
    with pytest.raises(DatasetError):
        site(replace(plan, folder="/nowhere"), 2).open()


# Who joins, and who does not.


def test_a_recruit_joins_when_it_is_ready_and_not_before(site: Any, plan: StepPlan, wanted: str) -> None:
    place = site(plan, 2)
    place.transport.make = lambda name: replace(site.plain(name), ready=False)
    place.workers[0].dies = at_step(2)
    exchange = place.open()
    exchange.run_steps(5)
    assert exchange.workers == 1
    exchange.run_steps(2)
    (recruit,) = place.transport.recruits
    assert recruit.calls == ["attach"]
    recruit.ready = True
    exchange.run_steps(STEPS - 7)
    assert exchange.workers == 2
    assert recruit.calls.count("gradients") == STEPS - 7
    assert weights_sha256(exchange.parameters()) == wanted


def test_without_any_worker_left_it_waits_for_the_recruit(site: Any, plan: StepPlan, wanted: str) -> None:
    place = site(plan, 1)
    place.transport.make = lambda name: replace(site.plain(name), ready=False)
    place.workers[0].dies = at_step(2)
    exchange = place.open()
    exchange.run_steps(STEPS)
    assert weights_sha256(exchange.parameters()) == wanted


def test_for_a_worker_that_dies_while_it_attaches_another_is_recruited(site: Any, plan: StepPlan, wanted: str) -> None:
    place = site(plan, 2)
    place.workers[0].dies = in_call("attach", "after")
    exchange = place.open()
    exchange.run_steps(STEPS)
    assert (exchange.failures, exchange.workers) == (1, 2)
    assert weights_sha256(exchange.parameters()) == wanted


def test_a_worker_that_computes_other_bits_is_not_admitted(site: Any, plan: StepPlan, wanted: str) -> None:
    place = site(plan, 3)
    place.workers[1].target = Foreign()
    exchange = place.open()
    assert (exchange.workers, exchange.failures) == (2, 0)
    (event,) = place.events
    assert (event.type, event.data["worker"], event.data["expected"]) == ("fault", "w1", exchange.numerics)
    assert event.data["numerics"] == exchange.numerics + "-other"
    exchange.run_steps(STEPS)
    assert place.workers[1].calls == ["attach"]
    assert place.transport.dismissed == ["w1"]
    assert weights_sha256(exchange.parameters()) == wanted


def test_the_first_workers_numerics_hold_for_the_whole_job(site: Any, plan: StepPlan) -> None:
    """Not for those that happen to be left: the steps up to here have the first one's bits."""
    place = site(plan, 1)
    place.transport.make = lambda name: replace(site.plain(name), target=Foreign())
    place.workers[0].dies = at_step(3)
    exchange = place.open()
    with pytest.raises(RemoteLost, match="no worker is left that computes the bits of numpy"):
        exchange.run_steps(STEPS)
    assert place.transport.dismissed == ["w0", "recruit0"]


def test_closing_lets_everybody_go(site: Any, plan: StepPlan) -> None:
    place = site(plan, 3)
    place.transport.make = lambda name: replace(site.plain(name), ready=False)
    place.workers[0].dies = at_step(2)
    exchange = place.open()
    exchange.run_steps(3)
    place.workers[1].alive = False
    exchange.close()
    assert place.workers[2].calls[-1] == "detach"
    assert place.aggregator.calls[-1] == "end"
    assert place.transport.dismissed == ["w0", "recruit0"]  # it may attach any time: the next job must not find it so


# How much is too much, and how far ahead.


def mortal(site: Any, place: Any) -> None:
    """From now on every recruit dies in its first step."""

    def make(name: str) -> Any:
        return replace(site.plain(name), dies=in_call("gradients"))

    place.transport.make = make


def test_losses_beyond_the_limit_end_the_job(site: Any, plan: StepPlan) -> None:
    place = site(plan, 1)
    mortal(site, place)
    place.workers[0].dies = at_step(3)
    exchange = place.open()
    with pytest.raises(TooManyFailures) as failed:
        exchange.run_steps(STEPS)
    assert (failed.value.failures, failed.value.seconds) == (FAILURES_ALLOWED + 1, FAILURE_WINDOW_S)
    assert exchange.failures == FAILURES_ALLOWED + 1
    assert len(place.transport.recruits) == FAILURES_ALLOWED


def test_workers_that_never_attach_end_the_job(site: Any, plan: StepPlan) -> None:
    place = site(plan, 2)
    place.transport.make = lambda name: replace(site.plain(name), dies=in_call("attach"))
    for worker in place.workers:
        worker.dies = in_call("attach")
    with pytest.raises(TooManyFailures):
        place.open()


def test_losses_that_lie_far_apart_do_not_add_up(site: Any, plan: StepPlan) -> None:
    place = site(plan, 1)
    mortal(site, place)
    place.workers[0].dies = at_step(3)
    lives = 2 * FAILURES_ALLOWED
    get = place.transport.get

    def get_later(references: list[Any]) -> list[Any]:
        if any(reference.error for reference in references):
            place.now += FAILURE_WINDOW_S / 4
            if exchange.failures == lives:  # enough: this one lives
                place.transport.make = site.plain
        return get(references)

    exchange = place.open()
    place.transport.get = get_later
    exchange.run_steps(STEPS)
    assert exchange.failures == lives + 1


def test_steps_are_chained_ahead_up_to_a_limit(site: Any, plan: StepPlan) -> None:
    place = site(plan, 1)
    exchange = place.open()
    get, ahead, received = place.transport.get, [], 0

    def get_counted(references: list[Any]) -> list[Any]:
        nonlocal received
        ahead.append(place.aggregator.calls.count("apply_parts") - received)
        received += 1
        return get(references)

    place.transport.get = get_counted
    exchange.run_steps(3 * AHEAD)
    assert max(ahead) == ahead[0] == AHEAD + 1
