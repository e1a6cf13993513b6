"""An aggregator's links: what is not due is not heard, and breaks the link before it does anything."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from worker.aggregator import ParameterAggregator
from worker.greeting import WORKER, Caller, connect
from worker.links import Inbox, Link, Links, raw
from worker.plan import StepPlan
from worker.wiring import GRADIENT, PARAMETERS, Stretch, Wiring

SEED, GENERATION, SECRET = 5, 9, b"s" * 32


class Place:
    """An aggregator that serves step 1 in a thread; this process is its only worker, as if on another machine."""

    def __init__(self, plan: StepPlan) -> None:
        self.plan, self.aggregator, self.links = plan, ParameterAggregator(), Links()
        self.parameters = self.aggregator.begin(plan, SEED).copy()
        listening = self.aggregator.listen("127.0.0.1")
        dealt = (tuple(range(plan.shards)),)
        self.wiring = Wiring(GENERATION, SECRET, (listening,), ("another machine",), dealt)
        self.stretch: Stretch | None = None
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()
        self.links.begin(GENERATION)
        address = listening.host, listening.port
        caller = Caller(WORKER, 0, GENERATION)
        self.link, self.shares_memory = connect(address, "aggregator 0", caller, SECRET, self.links)
        self.inbox = Inbox([self.link])

    def _serve(self) -> None:
        self.stretch = self.aggregator.serve(self.wiring, 1, 1)

    def received(self) -> tuple[tuple[Any, ...], np.ndarray]:
        """A header of parameters, and them."""
        header, found = bytearray(PARAMETERS.size), np.empty_like(self.parameters)
        self.inbox.fill({self.link: iter([memoryview(header), raw(found)])})
        return PARAMETERS.unpack(header), found

    def ended(self) -> Stretch:
        self.thread.join(20)
        assert self.stretch is not None
        return self.stretch


@pytest.fixture
def place(plan: StepPlan) -> Iterator[Place]:
    found = Place(plan)
    yield found
    found.links.close()
    found.thread.join(20)
    found.aggregator.end()


def send(link: Link, gradient: np.ndarray, *header: Any) -> None:
    link.send(memoryview(GRADIENT.pack(*header)), raw(gradient))


def test_a_step_over_a_link(place: Place) -> None:
    assert not place.shares_memory
    header, parameters = place.received()
    assert (header, parameters.tobytes()) == ((GENERATION, 0), place.parameters.tobytes())
    for shard in range(place.plan.shards):
        send(place.link, np.full_like(parameters, shard), GENERATION, 1, shard, 10, 10.0, 5.0)
    header, after = place.received()
    assert header == (GENERATION, 1)
    assert after.tobytes() == place.aggregator.parameters().tobytes() != parameters.tobytes()
    (report,) = place.ended().reports
    assert (report.step, report.rows, report.loss) == (1, 30, 0.5)


@pytest.mark.parametrize(
    "header",
    [(GENERATION - 1, 1, 0), (GENERATION, 2, 0), (GENERATION, 0, 0), (GENERATION, 1, 1), (2**64 - 1, 1, 0)],
    ids=["an older generation", "a later step", "an earlier step", "another shard", "nonsense"],
)
def test_what_is_not_due_breaks_the_link(place: Place, header: tuple[int, int, int]) -> None:
    place.received()
    send(place.link, np.zeros_like(place.parameters), *header, 10, 10.0, 5.0)
    stretch = place.ended()
    assert stretch.reports == ()
    assert stretch.broken is not None
    assert stretch.broken[0] == "worker 0"
    assert f"it has sent {header} where {(GENERATION, 1, 0)} was due" in stretch.broken[1]
    assert place.aggregator.committed == 0


def test_the_next_stretch_goes_on_over_the_same_links(place: Place) -> None:
    place.received()
    for step in (1, 2):
        if step == 2:
            place.thread = threading.Thread(target=lambda: place.aggregator.serve(place.wiring, 2, 2))
            place.thread.start()
        for shard in range(place.plan.shards):
            send(place.link, np.zeros_like(place.parameters), GENERATION, step, shard, 10, 10.0, 5.0)
        assert place.received()[0] == (GENERATION, step)
        place.thread.join(20)
    assert place.aggregator.committed == 2
