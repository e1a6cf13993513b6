"""The exchange of one machine: gradients and parameters at memory speed, no call of Ray's inside a step.

Workers sit in a shared segment (`worker.segment`) and do the steps among themselves (`worker.seat`). The trainer
commands, waits, and watches their processes: a pidfd tells of a death at once. It then says STOP, waits until every
survivor has left its seat, reads which step is committed, deals the seats anew, and has the rest of the command done.
The uncommitted step is computed from the committed buffer, which nobody has touched; shards whose slots were complete
are not computed again. Where there are more shards than seats, the seats claim them one by one (`worker.claims`), so
that a slow worker costs no more than its own slowness.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.metrics import zero_sums
from core.network import initial_parameters, network_graph, parameter_layout
from core.optimizers import make_optimizer
from worker.claims import MOST_SHARDS, Claims
from worker.crew import Crew, OverCrew
from worker.dataset import SPLITS
from worker.diagnosis import Observer
from worker.errors import RemoteLost, SeatStopped, ShardMissing
from worker.exchange import merge
from worker.futex import SUPPORTED
from worker.numerics import fingerprint, machine
from worker.pidfds import Pidfds
from worker.plan import StepPlan, StepReport
from worker.seat import Seating
from worker.segment import COMMAND, END, EVALUATE, FAILED, FIRST_SEAT, REPORTS_KEPT, RUN, STOP, Segment, SegmentLayout
from worker.transport import Reference, Transport

Array = NDArray[Any]
STOP_S = 2.0  # who has not left its seat by then is killed, or later where steps take long: it is not hung, but busy
PATIENCE = 10  # times what a step, or an evaluation, took last
SILENCE_S = 20.0  # so long without any seat's getting on, and all are asked to leave: who hangs does not


class _Lost(Exception):
    """A worker's process has ended, or its seat was left with an error that is not the job's."""


class SharedMemoryExchange(OverCrew):
    """Steps over workers that are processes of this machine. They come from `transport`; so do new ones."""

    def __init__(
        self,
        plan: StepPlan,
        seed: int,
        crew: Crew,
        transport: Transport,
        clock: Callable[[], float] = time.monotonic,
        claiming: bool = True,
    ) -> None:
        """`crew` has members. `claiming`: False deals shards out instead. MemoryError when the segment does not fit."""
        self._plan, self._transport, self._clock = plan, transport, clock
        self._crew = crew
        crew.only_machine = machine()
        self._segment = Segment.create(segment_layout(plan, max(plan.shards, crew.wanted)))
        initial = initial_parameters(plan.network, seed)
        self._segment.buffers[0, 0] = initial
        self._segment.best[...] = initial
        self._claims, self._may_claim, self._is_claiming = Claims.create(), claiming, False
        self._evaluations = 0  # how many there were
        self._doing: tuple[int, int] = END, 0
        self._seconds: dict[tuple[int, int], float] = {}  # of a step, an evaluation, the last time
        self._silence, self._heard, self._heard_at = SILENCE_S, -1, clock()
        self._serving: list[Reference] = []
        self._processes = Pidfds()
        self._observer: Observer | None = None  # made at the first look
        self._sit()

    def run_steps(self, count: int) -> list[StepReport]:
        self._change_members()
        first, reports = self._segment.committed + 1, list[StepReport]()
        target = first + count - 1
        while self._segment.committed < target:
            until = min(self._segment.committed + REPORTS_KEPT, target)
            first = self._segment.committed + 1
            self._command(RUN, until, times=until - first + 1)
            rows = (self._segment.reports[step % REPORTS_KEPT] for step in range(first, until + 1))
            reports += [StepReport(int(row[0]), int(row[1]), *(float(value) for value in row[2:])) for row in rows]
        return reports

    def evaluate(self, split: str, which: str = "current") -> NDArray[np.float64]:
        self._evaluations += 1
        self._command(EVALUATE, SPLITS.index(split), int(which == "best"))
        for shard, number in enumerate(self._segment.evaluated.tolist()):
            if number != self._evaluations:
                raise ShardMissing(self._segment.committed, shard)
        network = self._plan.network
        return merge(network.loss, network.outputs, list(self._segment.evaluations))

    def diagnose(self) -> dict[str, float]:
        """Computed by this process, while all seats wait: both parameter buffers lie before it."""
        segment, step = self._segment, self._segment.committed
        if self._observer is None:
            self._observer = Observer(self._plan)
        return self._observer.diagnose(step, segment.buffers[(step - 1) % 2, 0], segment.buffers[step % 2, 0])

    def keep_best(self) -> None:
        self._segment.best[...] = self._current()

    def parameters(self, which: str = "current") -> Array:
        found: Array = (self._segment.best if which == "best" else self._current()).copy()
        return found

    def snapshot(self) -> Array:
        found: Array = self._segment.buffers[self._segment.committed % 2].copy()
        return found

    def restore(self, step: int, state: Array, best: Array | None) -> None:
        """All seats wait for their first command: nobody reads meanwhile."""
        self._segment.restore(step, state, best)

    def close(self) -> None:
        try:
            self._stand_up()
        except (_Lost, RemoteLost):
            self._clear_seats()
        self._crew.close()
        if self._observer is not None:
            self._observer.close()
        self._processes.close()
        self._claims.close()
        os.close(self._segment.descriptor)

    def _current(self) -> Array:
        current: Array = self._segment.buffers[self._segment.committed % 2, 0]
        return current

    # Commands.

    def _command(self, kind: int, argument: int, which: int = 0, times: int = 1) -> None:
        """Have all seats do it, whoever dies meanwhile. Raises what a seat raised: Diverged, say."""
        began = self._clock()
        while True:
            try:
                self._give(kind, argument, which)
                self._seconds[self._doing] = (self._clock() - began) / times
                return
            except _Lost as error:
                self._recover(error)
            except BaseException:
                self._clear_seats()
                raise

    def _give(self, kind: int, argument: int, which: int) -> None:
        segment = self._segment
        segment.command[:] = kind, argument, which, self._evaluations
        self._doing = kind, argument if kind == EVALUATE else 0
        self._offer(kind, argument)
        self._heard, self._heard_at = -1, self._clock()
        number = segment.words[COMMAND] + 1
        segment.words.publish(COMMAND, number)
        for seat in range(len(self._serving)):
            self._wait(seat, number)

    def _offer(self, kind: int, argument: int) -> None:
        """The first claims of a command: a seat offers those of the steps after."""
        if self._is_claiming and kind == EVALUATE:
            self._claims.offer(-self._evaluations, range(self._plan.shards), len(self._serving))
        elif self._is_claiming and kind == RUN and self._segment.committed < argument:
            step, held = self._segment.committed + 1, self._segment.shard_steps.tolist()
            missing = (shard for shard, other in enumerate(held) if other != step)
            self._claims.offer(step, missing, len(self._serving))

    def _wait(self, seat: int, number: int) -> None:
        done = self._segment.done(seat)
        self._segment.words.wait(done, number, spin=False, look=self._look)
        self._check(seat)

    def _look(self) -> None:
        for seat in range(len(self._serving)):
            self._check(seat)
        if self._processes.ended():
            raise _Lost
        heard = self._segment.activity()
        if heard != self._heard:
            self._heard, self._heard_at = heard, self._clock()
        elif self._clock() - self._heard_at > self._silence:
            self._silence *= 2  # it may be a step that takes this long, and nobody hangs
            raise _Lost

    def _check(self, seat: int) -> None:
        """Raise what the seat was left with, if it was."""
        if self._segment.words[self._segment.done(seat)] == FAILED:
            try:
                self._transport.get([self._serving[seat]])
            except RemoteLost as error:
                raise _Lost from error

    # Seats.

    def _sit(self) -> None:
        """A new generation: every member takes a seat."""
        segment, members = self._segment, self._crew.members
        for word in range(FIRST_SEAT, segment.words.count):
            segment.words[word] = 0
        segment.words[STOP] = segment.words[COMMAND] = 0
        self._processes.watch({worker.name: self._crew.attached[worker.name].pid for worker in members})
        segment.seat_seconds[...] = 0.0
        self._is_claiming = self._may_claim and 1 < len(members) < self._plan.shards <= MOST_SHARDS
        self._claims.clear()
        claims = self._claims.path if self._is_claiming else None
        reducers = min(len(members), len(os.sched_getaffinity(0)))
        self._serving = [
            worker.call(
                "take_seat",
                Seating(number, len(members), reducers, segment.layout, segment.path, claims, os.getpid()),
            )
            for number, worker in enumerate(members)
        ]

    def _stand_up(self) -> None:
        """Every member leaves its seat, in order."""
        self._give(END, 0, 0)
        self._transport.get(self._serving)
        self._serving = []

    def _change_members(self) -> None:
        """Between two steps: who has attached since takes part from now on, and the surplus leaves."""
        self._crew.call_up()
        if self._crew.is_to_change:
            try:
                self._stand_up()
            except (_Lost, RemoteLost) as error:
                self._recover(error)
                return
            self._crew.admit(wait=False)
            self._sit()

    # Faults.

    def _recover(self, error: Exception) -> None:
        began = self._clock()
        failed = self._clear_seats()
        ended = self._processes.ended()
        dead = [worker for worker in self._crew.members if worker.name in ended]
        if dead:
            self._crew.lose(dead, self._segment.committed + 1, error, began)
        elif failed is not None:  # it would fail again
            raise failed
        self._sit()

    def _clear_seats(self) -> Exception | None:
        """Wait until nobody is in a seat any more; who does not leave is killed, and waited for. What one has left, or
        never taken, its seat with, if it was not told to.

        Only then may the words be read and the slots be given to others: a process that was stopped, and goes on
        later, must never write into a step that is not its own.
        """
        words = self._segment.words
        words[STOP] = 1
        for word in range(words.count):
            words.wake(word)
        until, failed = self._clock() + self._stop_seconds(), None
        for worker, serving in zip(self._crew.members, self._serving, strict=True):
            while not self._transport.is_ready(serving) and not self._processes.has_ended(worker.name, wait_ms=1):
                if self._clock() > until:
                    self._processes.kill(worker.name)
            try:
                self._transport.get([serving])
            except RemoteLost:
                self._processes.kill(worker.name)  # lost to Ray, whatever its process does
            except SeatStopped:
                continue
            except Exception as error:
                failed = failed or error
        self._serving = []
        return failed

    def _stop_seconds(self) -> float:
        """How long who is asked to leave its seat may finish what it is at.

        Nothing known of such a step yet: as long as silence is borne.
        """
        if self._doing[0] == END:
            return STOP_S
        known = self._seconds.get(self._doing)
        return max(STOP_S, self._silence if known is None else PATIENCE * known)


def suits(plan: StepPlan, crew: Crew) -> bool:
    """Whether the members of `crew` can do `plan` in shared memory with this process."""
    here = machine()
    together = all(crew.attached[worker.name].machine == here for worker in crew.members)
    one_build = crew.numerics == fingerprint()  # this process looks inside the network, with the workers' bits
    return SUPPORTED and together and one_build and plan.optimizer.max_norm is None  # that norm goes across blocks


def segment_layout(plan: StepPlan, seats: int) -> SegmentLayout:
    """The segment that a job of `plan` needs."""
    layout = parameter_layout(network_graph(plan.network))
    return SegmentLayout(
        parameters=layout.size,
        dtype=plan.network.dtype,
        state_vectors=make_optimizer(plan.optimizer).state_vectors,
        shards=plan.shards,
        blocks=len(layout.blocks),
        seats=seats,
        sums=len(zero_sums(plan.network.loss, plan.network.outputs)),
    )
