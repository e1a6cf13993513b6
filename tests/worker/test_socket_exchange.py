"""The exchange over sockets, over real processes: the same bits, whoever is lost and however."""

import multiprocessing
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

import pytest
from numpy.typing import NDArray

from benchmarks.processes import Processes
from core.optimizers import OptimizerSpec
from core.parameters import weights_sha256
from worker.aggregator import ParameterAggregator
from worker.errors import Diverged, LinkBroken, RemoteLost
from worker.exchange import InProcessExchange
from worker.gradient_seat import Memory, _Aggregator
from worker.gradient_worker import GradientWorker
from worker.links import tune
from worker.plan import Reduced, ShardReport, StepPlan, StepReport
from worker.socket_exchange import STRETCH
from worker.wiring import Place, Stretch

pytestmark = pytest.mark.usefixtures("small_blocks")
Array = NDArray[Any]
SEED, STEPS, LONG = 5, 12, 1500
PATIENCE_S = 30.0
OPTIMIZERS = {
    "sgd": OptimizerSpec("sgd", 0.05),
    "adamw, clipped": OptimizerSpec("adamw", 0.01, weight_decay=0.01, clip_norm=0.1),
}


def undisturbed(plan: StepPlan, steps: int = STEPS) -> tuple[str, list[StepReport]]:
    with closing(InProcessExchange(plan, SEED)) as exchange:
        reports = exchange.run_steps(steps)
        return weights_sha256(exchange.parameters()), reports


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("workers", "shares", "apart", "nodes"),
    [(1, 1, 0, 0), (1, 2, 1, 0), (2, 2, 0, 0), (2, 2, 1, 0), (3, 3, 3, 0), (5, 11, 2, 0), (3, 2, 0, 2)],
)
def test_the_bits_and_the_reports_are_those_of_one_process(
    socket_bench: Any, plan: StepPlan, optimizer: str, workers: int, shares: int, apart: int, nodes: int
) -> None:
    plan = replace(plan, optimizer=OPTIMIZERS[optimizer], network=replace(plan.network, dropout=0.2))
    exchange = socket_bench(plan, workers, shares, apart, nodes).exchange
    reports = [report for count in (1, 0, STEPS - 1) for report in exchange.run_steps(count)]
    assert (weights_sha256(exchange.parameters()), reports) == undisturbed(plan)
    with closing(InProcessExchange(plan, SEED)) as oracle:
        oracle.run_steps(STEPS)
        for split in ("validation", "test"):
            assert exchange.evaluate(split).tobytes() == oracle.evaluate(split).tobytes()
        assert exchange.diagnose() == oracle.diagnose()
        assert exchange.snapshot().tobytes() == oracle.snapshot().tobytes()


def test_half_gradients_travel_as_such_and_are_those_of_one_process(socket_bench: Any, plan: StepPlan) -> None:
    half = replace(plan, half_gradients=True)
    exchange = socket_bench(half, 3, 2, 2).exchange
    assert (weights_sha256(exchange.parameters()), exchange.run_steps(STEPS)) == (
        undisturbed(half, 0)[0],
        undisturbed(half)[1],
    )
    assert weights_sha256(exchange.parameters()) == undisturbed(half)[0] != undisturbed(plan)[0]


@pytest.mark.parametrize(("shares_memory", "in_half", "sent"), [(False, False, 40), (False, True, 20), (True, True, 0)])
def test_of_a_gradient_is_sent_what_the_other_end_does_not_see(
    plan: StepPlan, shares_memory: bool, in_half: bool, sent: int
) -> None:
    with closing(Memory(plan, 1)) as memory:
        memory.gradients[0][:10] = 1.5
        each = _Aggregator(Any, shares_memory, memory, slice(0, 10), in_half)
        assert sum(piece.nbytes for piece in each.piece(0)) == sent


@pytest.mark.parametrize("seed", range(4))
def test_workers_killed_at_random_moments_cost_no_bit_and_no_step(socket_bench: Any, plan: StepPlan, seed: int) -> None:
    """Moments within a stretch, too: it goes on while another thread kills."""
    draw = random.Random(seed)
    place = socket_bench(plan, draw.randrange(1, 5), draw.randrange(1, 4), apart=1)
    wanted, wanted_reports = undisturbed(plan, LONG)
    reports, killed, ended = list[StepReport](), list[int](), threading.Event()

    def kill() -> None:
        while not ended.wait(draw.uniform(0, 0.3 if killed else 0.01)) and len(killed) < 6:
            if alive := pids(place):
                killed.append(draw.choice(alive))
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(killed[-1], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        while len(reports) < LONG:
            reports += place.exchange.run_steps(min(200, LONG - len(reports)))
    finally:
        ended.set()
        thread.join()
    assert reports == wanted_reports
    assert weights_sha256(place.exchange.parameters()) == wanted
    assert 1 <= place.exchange.failures <= len(killed)
    assert [event.type for event in place.events] == ["fault"] * len(place.events)


def pids(place: Any) -> list[int]:
    """Of the processes of all workers that live."""
    workers = [each for each in place.transport.all if each not in place.aggregators]
    return [each.process.pid for each in workers if each.process.is_alive()]


def test_a_lost_workers_event_names_the_step_that_was_not_whole(socket_bench: Any, plan: StepPlan) -> None:
    place = socket_bench(plan, 2, 2, apart=1)
    place.exchange.run_steps(5)
    os.kill(pids(place)[0], signal.SIGKILL)
    assert [report.step for report in place.exchange.run_steps(5)] == [6, 7, 8, 9, 10]
    (event,) = place.events
    assert (event.data["workers"], event.data["step"]) == ([place.workers[0].name], 6)


class Asked(Processes):
    """Whoever does not answer beside what it does is killed, as over Ray."""

    def alive(self, remotes: Sequence[Any]) -> set[str]:
        asked = [remote for remote in remotes if super(Asked, self).alive([remote])]
        calls = [(remote, remote.call_beside("give_up", -1)) for remote in asked]
        until = time.monotonic() + 5.0
        for remote, call in calls:
            if not self.wait([call], max(0.0, until - time.monotonic())):
                remote.process.kill()
                remote.process.join()
        return super().alive(asked)


@pytest.mark.parametrize("apart", [0, 2])
def test_a_worker_that_hangs_is_ended_and_its_shards_go_to_others(
    socket_bench: Any, plan: StepPlan, monkeypatch: pytest.MonkeyPatch, apart: int
) -> None:
    monkeypatch.setattr("worker.transport.SILENCE_S", 0.3)
    place = socket_bench(plan, 2, 2, apart, transport=Asked())
    reports = place.exchange.run_steps(20)
    os.kill(pids(place)[1], signal.SIGSTOP)
    while len(reports) < 60:
        reports += place.exchange.run_steps(20)
    assert (weights_sha256(place.exchange.parameters()), reports) == undisturbed(plan, 60)
    assert place.exchange.failures == 1


@pytest.mark.parametrize("ask", ["keep_best", "parameters", "snapshot", "close"])
def test_an_aggregator_that_hangs_between_steps_is_a_lost_one(
    socket_bench: Any, plan: StepPlan, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    monkeypatch.setattr("worker.transport.SILENCE_S", 0.3)
    place = socket_bench(plan, 2, 2, transport=Asked())
    place.exchange.run_steps(3)
    os.kill(place.aggregators[1].process.pid, signal.SIGSTOP)
    if ask == "close":
        place.exchange.close()  # it has nothing to let go any more
        return
    with pytest.raises(RemoteLost, match=place.aggregators[1].name):
        getattr(place.exchange, ask)()


def test_a_worker_that_hangs_is_not_waited_for_at_the_end(
    socket_bench: Any, plan: StepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.transport.SILENCE_S", 0.3)
    place = socket_bench(plan, 2, 2, transport=Asked())
    place.exchange.run_steps(3)
    os.kill(pids(place)[0], signal.SIGSTOP)
    place.exchange.close()
    assert len(pids(place)) == 1


class Unlinked(GradientWorker):
    """It has no memory for its links."""

    def serve(self, *arguments: Any) -> Stretch:
        raise MemoryError("no more")


def test_an_error_before_all_are_linked_leaves_nobody_waiting(socket_bench: Any, plan: StepPlan) -> None:
    with closing(Processes()) as transport:
        with pytest.raises(MemoryError, match="no more"):
            socket_bench(plan, 3, 2, apart=2, transport=transport, worker=Unlinked)
        for each in transport.all:
            method = "end" if each in transport.all[3:] else "detach"
            assert transport.wait([each.call(method)], PATIENCE_S), f"{each.name} waits for ever"


def test_an_error_of_one_that_joins_later_leaves_nobody_waiting(socket_bench: Any, plan: StepPlan) -> None:
    place = socket_bench(plan, 2, 2)
    place.exchange.run_steps(3)
    place.transport.recruit = lambda beside: Processes.recruit(place.transport, Unlinked)
    place.exchange.scale(3)
    until = time.monotonic() + PATIENCE_S

    def train() -> None:
        while time.monotonic() < until:
            place.exchange.run_steps(7)

    with pytest.raises(MemoryError, match="no more"):
        train()
    closed = threading.Thread(target=place.exchange.close, daemon=True)
    closed.start()
    closed.join(PATIENCE_S)
    assert not closed.is_alive()


class Accident(ParameterAggregator):
    """A link of the first one breaks when it takes step 4, once."""

    broke = False

    def reduce(self, step: int, gradients: Sequence[Array], reports: Sequence[ShardReport]) -> Reduced:
        if step == 4 and not self.broke:
            self.broke = True
            raise LinkBroken("worker 0", "the test has cut it")
        return super().reduce(step, gradients, reports)


class DiesAt4(GradientWorker):
    """Its process ends in step 4."""

    def gradient(self, step: int, shard: int, parameters: Array, gradient: Array) -> ShardReport:
        if step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().gradient(step, shard, parameters, gradient)


def test_a_death_is_no_link_that_breaks_for_nothing(
    socket_bench: Any, plan: StepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.socket_exchange.FRUITLESS", 1)
    place = socket_bench(plan, 1, 1, worker=DiesAt4, aggregator=Accident)
    reports = place.exchange.run_steps(3)
    reports += place.exchange.run_steps(STEPS - 3)
    assert (weights_sha256(place.exchange.parameters()), reports) == undisturbed(plan)
    assert place.exchange.failures == 1


class Late(ParameterAggregator):
    """To the second one a link breaks before it commits step 5, which the first commits."""

    broke = False

    def begin(self, plan: StepPlan, seed: int, number: int = 0, of: int = 1) -> Array:
        self.number = number
        return super().begin(plan, seed, number, of)

    def commit(self, step: int, reduced: Sequence[Reduced], reports: Sequence[ShardReport]) -> StepReport:
        if step == 5 and self.number == 1 and not self.broke:
            self.broke = True
            raise LinkBroken("aggregator 0", "the test has cut it")
        return super().commit(step, reduced, reports)


def test_who_has_not_heard_of_a_step_that_others_have_committed_commits_it_too(
    socket_bench: Any, plan: StepPlan
) -> None:
    place = socket_bench(plan, 2, 2, aggregator=Late)
    calls = called(place.aggregators)
    reports = place.exchange.run_steps(STEPS)
    assert calls.count("commit_kept") == 1
    assert (weights_sha256(place.exchange.parameters()), reports) == undisturbed(plan)
    assert (place.exchange.failures, place.events) == (0, [])


class Ahead(Late):
    """The first one is then at step 6 already."""

    reduces_6 = multiprocessing.get_context("fork").Event()

    def reduce(self, step: int, gradients: Sequence[Array], reports: Sequence[ShardReport]) -> Reduced:
        if step == 6 and self.number == 0:
            self.reduces_6.set()
        return super().reduce(step, gradients, reports)

    def commit(self, step: int, reduced: Sequence[Reduced], reports: Sequence[ShardReport]) -> StepReport:
        if step == 5 and self.number == 1:
            assert self.reduces_6.wait(PATIENCE_S)
        return super().commit(step, reduced, reports)


def test_one_that_is_a_step_ahead_still_knows_what_another_has_to_commit(socket_bench: Any, plan: StepPlan) -> None:
    """Parameters are sent before all have heard of all, where nothing is clipped, so that one may be ahead."""
    plan = replace(plan, optimizer=OPTIMIZERS["sgd"])
    place = socket_bench(plan, 2, 2, aggregator=Ahead)
    calls = called(place.aggregators)
    reports = place.exchange.run_steps(STEPS)
    assert calls.count("commit_kept") == 1
    assert (weights_sha256(place.exchange.parameters()), reports) == undisturbed(plan)


class Mute(ParameterAggregator):
    """Its links break whenever it takes a step."""

    def reduce(self, step: int, gradients: Sequence[Array], reports: Sequence[ShardReport]) -> Reduced:
        raise LinkBroken("worker 0", "the test has cut it")


def test_links_that_break_again_and_again_though_nobody_is_dead_end_it(socket_bench: Any, plan: StepPlan) -> None:
    place = socket_bench(plan, 2, 2, aggregator=Mute)
    with pytest.raises(RemoteLost, match=r"the link to worker \d broke: "):
        place.exchange.run_steps(1)


class Deaf(ParameterAggregator):
    """Says that it listens where nobody does."""

    def listen(self, host: str) -> Place:
        return replace(super().listen(host), port=1)


def test_who_cannot_be_reached_is_named_at_once(socket_bench: Any, plan: StepPlan) -> None:
    with pytest.raises(LinkBroken, match=r"aggregator 0 at 127\.0\.0\.1:1 broke: .*refused"):
        socket_bench(plan, 2, 1, aggregator=Deaf)


class Full(GradientWorker):
    """It has no memory left in step 4."""

    def gradient(self, step: int, shard: int, parameters: Array, gradient: Array) -> ShardReport:
        if step == 4:
            raise MemoryError("no more")
        return super().gradient(step, shard, parameters, gradient)


def test_an_error_of_a_worker_is_no_loss(socket_bench: Any, plan: StepPlan) -> None:
    place = socket_bench(plan, 3, 2, worker=Full)
    place.exchange.run_steps(3)
    with pytest.raises(MemoryError, match="no more"):
        place.exchange.run_steps(10)
    assert place.events == []


def test_workers_with_more_headers_than_buffers_hold_do_not_stand_still(
    socket_bench: Any, make_step_plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes: each worker sends vectors to one aggregator and headers alone to the other, 120 times a step."""

    def tune_small(connection: socket.socket) -> None:
        tune(connection)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, 2048)

    monkeypatch.setattr("worker.greeting.tune", tune_small)  # of the processes that are forked from now on
    plan = make_step_plan(shards=240, batch_size=240)[0]
    place = socket_bench(plan, 2, 2, nodes=2)
    reports = place.exchange.run_steps(2)
    assert (weights_sha256(place.exchange.parameters()), reports) == undisturbed(plan, 2)


def called(processes: Sequence[Any]) -> list[str]:
    """What is called of them from now on."""
    calls: list[str] = []

    def recorded(call: Any) -> Any:
        return lambda method, *rest, **named: calls.append(method) or call(method, *rest, **named)

    for each in processes:
        each.call = recorded(each.call)
    return calls


def test_nobody_is_called_inside_a_stretch(socket_bench: Any, plan: StepPlan) -> None:
    place = socket_bench(plan, 2, 2)
    calls = called([*place.workers, *place.aggregators])
    place.exchange.run_steps(500)
    assert calls == ["serve"] * 4
    place.exchange.run_steps(STRETCH + 1)
    assert calls == ["serve"] * 12


@pytest.mark.parametrize("count", [1, 4])
def test_more_and_fewer_workers_from_stretch_to_stretch(socket_bench: Any, plan: StepPlan, count: int) -> None:
    place = socket_bench(plan, 3, 2)
    reports = place.exchange.run_steps(7)
    place.exchange.scale(count)
    until = time.monotonic() + 60
    while place.exchange.workers != min(count, plan.shards):
        assert time.monotonic() < until
        reports += place.exchange.run_steps(7)
    reports += place.exchange.run_steps(7)
    assert (weights_sha256(place.exchange.parameters()), reports) == undisturbed(plan, len(reports))


def test_divergence_names_step_and_shard(socket_bench: Any, plan: StepPlan) -> None:
    steep = replace(plan, optimizer=OptimizerSpec("sgd", 1e6))
    exchange = socket_bench(steep, 2, 2).exchange
    with closing(InProcessExchange(steep, SEED)) as oracle:
        with pytest.raises(Diverged) as wanted:
            oracle.run_steps(200)
        with pytest.raises(Diverged) as found:
            exchange.run_steps(200)
        assert found.value.args == wanted.value.args
        assert exchange.parameters().tobytes() == oracle.parameters().tobytes()


def test_the_loss_of_an_aggregator_ends_it(socket_bench: Any, plan: StepPlan) -> None:
    place = socket_bench(plan, 2, 2)
    place.exchange.run_steps(3)
    os.kill(place.aggregators[1].process.pid, signal.SIGKILL)
    with pytest.raises(RemoteLost):
        place.exchange.run_steps(1)
