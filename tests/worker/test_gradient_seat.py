"""A worker's shared memory: one at a time, its descriptor is closed once, and nobody keeps it after a job."""

import gc
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.optimizers import OptimizerSpec
from worker import memfd
from worker.aggregator import ParameterAggregator
from worker.errors import Diverged
from worker.gradient_seat import Memory
from worker.gradient_worker import GradientWorker
from worker.numerics import machine
from worker.plan import StepPlan
from worker.wiring import Stretch, Wiring

SEED, SECRET = 5, b"s" * 32
Dealt = tuple[tuple[int, ...], ...]


def mapped() -> int:
    """How many mappings of shared memory this process has."""
    return Path("/proc/self/maps").read_text().count("/memfd:fallline-memory")


class Team:
    """Two workers and an aggregator that serve in threads of this process, the workers as if on another `machine`."""

    def __init__(self, plan: StepPlan, machine: str = "another") -> None:
        self.machine = machine
        self.workers, self.aggregator = [GradientWorker(), GradientWorker()], ParameterAggregator()
        for worker in self.workers:
            worker.attach(plan)
        self.aggregator.begin(plan, SEED)
        self.place = self.aggregator.listen("127.0.0.1")

    def wiring(self, generation: int, dealt: Dealt) -> Wiring:
        return Wiring(generation, SECRET, (self.place,), (self.machine,) * len(dealt), dealt)

    def step(self, step: int, *dealt: tuple[int, ...]) -> None:
        """In a generation of the step's number."""
        wiring, stretches = self.wiring(step, dealt), list[Stretch]()

        def run(serve: Callable[..., Stretch], *arguments: Any) -> None:
            stretches.append(serve(wiring, *arguments))

        threads = [threading.Thread(target=run, args=(self.aggregator.serve, step, step))]
        threads += [
            threading.Thread(target=run, args=(self.workers[k].serve, k, step, step)) for k in range(len(dealt))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert [stretch.broken for stretch in stretches] == [None] * len(threads)

    def end(self) -> None:
        for worker in self.workers:
            worker.detach()
        self.aggregator.end()


@pytest.fixture
def team(plan: StepPlan) -> Iterator[Team]:
    gc.collect()
    found = Team(plan)
    yield found
    found.end()


def test_a_worker_never_has_two_memories(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    before, create, had = mapped(), memfd.create, list[int]()
    team.step(1, (0, 1), (2,))
    team.step(2, (1, 2), (0,))
    assert mapped() - before == 2
    team.workers[1].detach()

    def created(*arguments: Any) -> int:
        had.append(mapped() - before)
        return create(*arguments)

    monkeypatch.setattr(memfd, "create", created)
    team.step(3, (0, 1, 2))
    assert had == [0]
    assert mapped() - before == 1


def test_steps_go_on_after_a_re_deal_without_room_and_no_descriptor_is_closed_twice(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(size: int, what: str) -> int:
        raise MemoryError(what)

    team.step(1, (0, 1), (2,))
    with monkeypatch.context() as patch:
        patch.setattr(memfd, "create", full)
        with pytest.raises(MemoryError):
            team.workers[0].serve(team.wiring(2, ((0, 1, 2),)), 0, 2, 2)
    others = [os.open("/dev/null", os.O_RDONLY) for _ in range(4)]  # one of them has its number
    team.step(2, (0, 1), (2,))
    team.workers[0].detach()
    assert [os.readlink(memfd.path(descriptor)) for descriptor in others] == ["/dev/null"] * 4
    for descriptor in others:
        os.close(descriptor)


def test_a_memory_may_be_closed_twice(plan: StepPlan) -> None:
    memory = Memory(plan, 1)
    memory.close()
    other = os.open("/dev/null", os.O_RDONLY)  # it has its number
    memory.close()
    os.close(other)


def test_an_aggregator_that_has_ended_maps_no_workers_memory_though_it_diverged(plan: StepPlan) -> None:
    gc.collect()
    before, team = mapped(), Team(replace(plan, optimizer=OptimizerSpec("sgd", 1e6)), machine())
    wiring, steps = team.wiring(1, ((0, 1, 2),)), []

    def serve() -> None:
        errors = []  # it refers to the error, and that to this frame: as in an actor
        try:
            team.aggregator.serve(wiring, 1, plan.steps)
        except Diverged as error:
            errors.append(error)
            steps.append(error.step)

    thread = threading.Thread(target=serve)
    thread.start()
    assert team.workers[0].serve(wiring, 0, 1, plan.steps).broken is not None
    thread.join(20)
    assert len(steps) == 1
    assert mapped() - before == 2
    team.aggregator.end()
    assert mapped() - before == 1  # the worker's own
    team.end()
    assert mapped() == before
