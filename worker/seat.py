"""A worker's side of the shared-memory exchange: one seat among several, all doing the same steps together.

A step has two phases, each ended by a barrier. First gradients go into the shards' slots, of shards that were dealt to
the seat or, where there are more shards than seats, claimed one by one (worker.claimed_shards). Then each seat that
reduces, one a core at most, sums its blocks up over all slots in shard order, takes their square sums, and applies the
optimizer, out of place, into the other buffer, a block at a time: what one has read and written is in the core's cache.
Where the norm of all blocks has a say in the update, that is a third phase of its own.

All seats then find norm and soundness of the whole step from the same words, and so come to the same decisions. The
first one writes the report and commits the step, and the others are at the next one's gradients already: what they
overwrite, slots, is not needed any more, and the committed parameters are not touched before all have arrived again.
"""

import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from core.network import network_graph, parameter_layout
from core.optimizers import make_optimizer
from core.schedules import learning_rate
from worker.claimed_shards import ClaimedShards
from worker.claims import Claims
from worker.dataset import SPLITS
from worker.errors import Diverged, SeatStopped, ShardMissing
from worker.pidfds import Pidfds
from worker.plan import ShardReport, StepPlan
from worker.reduction import clip_factor, culprit, evidence, is_finite, norm, square_sum, sum_block, total_loss
from worker.sampling import deal
from worker.segment import COMMAND, END, EVALUATE, FAILED, NO_STEP, PHASES, RUN, STOP, Segment, SegmentLayout

Array = NDArray[Any]
LOOK_AT_TRAINER_S = 1.0
FAR = 1e15  # from zero: far below the range of any dtype, and of its root


class Computes(Protocol):
    """What a seat's worker does: `worker.gradient_worker.GradientWorker`, attached."""

    def gradient(self, step: int, shard: int, parameters: Array, gradient: Array) -> ShardReport:
        """Overwrite `gradient` with the shard's of `step`."""

    def evaluate(self, split: str, shard: int, parameters: Array) -> NDArray[np.float64]:
        """The metric sums of the shard's rows of `split`."""


@dataclass(frozen=True)
class Seating:
    """Which seat: `number` of `seats` in the `segment` and at the `claims` (None: shards are dealt) at these paths.

    The first `reducers` of the seats reduce and apply.
    """

    number: int
    seats: int
    reducers: int
    layout: SegmentLayout
    segment: str
    claims: str | None
    trainer_pid: int


@dataclass(frozen=True)
class _Block:
    """One of the fixed blocks, as the seat that reduces it sees it."""

    number: int
    slots: list[Array]  # its part of each
    sum: Array  # of those
    buffers: list[tuple[Array, list[Array]]]  # by the step's parity: its parameters, and its part of each state vector


class Seat:
    """A seat, held by an attached worker. `serve` returns when the trainer says END."""

    def __init__(self, worker: Computes, plan: StepPlan, seating: Seating) -> None:
        segment, number, seats = Segment.open(seating.layout, seating.segment), seating.number, seating.seats
        self._worker, self._plan, self._segment = worker, plan, segment
        self._number, self._seats, self._reducers = number, seats, seating.reducers
        self._cores = os.sched_getaffinity(0)
        self._spin = seats <= len(self._cores)
        self._optimizer = make_optimizer(plan.optimizer)
        layout = parameter_layout(network_graph(plan.network))
        numbers = range(number, len(layout.blocks), self._reducers) if number < self._reducers else range(0)
        self._clips = plan.optimizer.clip_norm is not None
        self._slots = list(segment.slots)
        self._blocks = self._reduced({number: layout.blocks[number] for number in numbers})
        self._parameters = [buffer[0] for buffer in segment.buffers]
        self._shards = deal(plan.shards, seats)[number]
        claims = None if seating.claims is None else Claims(seating.claims)
        self._claimed = None if claims is None else ClaimedShards(claims, segment, number, seats)
        # So many seats meet at the first barrier, and say so at the others. Who reduces nothing waits for those who do;
        # not so where shards are claimed, which rests on what all know.
        self._synchronous = self._reducers if claims is None else seats
        self._trainer = Pidfds()
        self._trainer.watch({"trainer": seating.trainer_pid})
        self._looked_at = time.monotonic()

    def _reduced(self, blocks: dict[int, slice]) -> list[_Block]:
        """Cut once, not in each step. Where a block is done with before the next, one sum does for all of them."""
        dtype = np.dtype(self._plan.network.dtype)
        sizes = [block.stop - block.start for block in blocks.values()]
        ends = list(accumulate(sizes)) if self._clips else sizes
        sums = np.empty(max(ends, default=0), dtype)
        return [
            _Block(
                number,
                [slot[block] for slot in self._slots],
                sums[end - size : end],
                [(buffer[0, block], list(buffer[1:, block])) for buffer in self._segment.buffers],
            )
            for (number, block), size, end in zip(blocks.items(), sizes, ends, strict=True)
        ]

    def serve(self) -> None:
        """Do what the trainer commands, until END. SeatStopped when it says STOP, or is gone; Diverged."""
        words, done = self._segment.words, self._segment.done(self._number)
        command = words[done]
        try:
            self._keep_to_a_core()
            while True:
                command += 1
                words.wait(COMMAND, command, self._spin, self._look)
                kind, argument, which, evaluation = (int(value) for value in self._segment.command)
                if kind == RUN:
                    self._run(argument)
                elif kind == EVALUATE:
                    self._evaluate(argument, which, evaluation)
                words.publish(done, command)
                if kind == END:
                    return
        except SeatStopped:
            raise
        except BaseException:
            words.publish(done, FAILED)
            raise
        finally:
            os.sched_setaffinity(0, self._cores)
            self._trainer.close()
            if self._claimed is not None:
                self._claimed.close()

    def _keep_to_a_core(self) -> None:
        """Where seats outnumber cores, each has one: left alone, they crowd on some and leave their caches behind."""
        if len(self._cores) < self._seats and self._plan.threads_per_worker == 1:
            os.sched_setaffinity(0, {sorted(self._cores)[self._number % len(self._cores)]})

    def _run(self, target: int) -> None:
        segment, plan = self._segment, self._plan
        for step in range(segment.committed + 1, target + 1):
            rate = learning_rate(plan.schedule, plan.optimizer.learning_rate, step, plan.steps)
            self._gradients(step)
            self._arrive(step, 1)
            rows, weight, loss, divisor = 0, 0.0, 0.0, 1.0
            if self._number < self._synchronous:
                self._await(step, 1, self._seats)
                rows, weight, loss = self._totals(step)
                divisor = weight or 1.0
                if self._claimed is not None:
                    self._claimed.prepare(step, target)
                self._reduce(step, rate, 1.0 / divisor)
                self._arrive(step, 2)
            self._await(step, 2, self._synchronous)
            gradient_norm = norm(segment.block_squares.tolist()) / divisor
            if not math.isfinite(gradient_norm):
                raise Diverged(step, culprit([evidence(self._slots)]), "gradient")
            if self._clips:
                self._apply(step, rate, clip_factor(gradient_norm, plan.optimizer.clip_norm) / divisor)
                self._arrive(step, 3)
                self._await(step, 3, self._reducers)
            if min(segment.block_steps.tolist()) < step:
                raise Diverged(step, None, "weight vector")
            if self._number == 0:
                segment.commit(step, (step, rows, weight, loss / divisor, gradient_norm, rate))

    def _gradients(self, step: int) -> None:
        segment, parameters = self._segment, self._parameters[(step - 1) % 2]
        for shard in self._shards_of(step):
            if segment.shard_steps[shard] == step:
                continue  # done before a fault, by whoever had it then: the same bits
            segment.shard_steps[shard] = NO_STEP  # who is lost while it writes leaves neither this nor the last one
            report = self._worker.gradient(step, shard, parameters, self._slots[shard])
            segment.shard_rows[shard] = report.rows
            segment.shard_weights[shard] = report.weight_sum
            segment.shard_losses[shard] = report.loss_sum
            segment.shard_steps[shard] = step
            if segment.words[STOP]:
                raise SeatStopped

    def _shards_of(self, step: int) -> Iterable[int]:
        """This seat's in `step`; in an evaluation, by minus its number."""
        return self._shards if self._claimed is None else self._claimed.of(step)

    def _totals(self, step: int) -> tuple[int, float, float]:
        """Rows, weight and loss of the whole step, from all shards in order."""
        held = self._segment.shard_steps.tolist()
        if held.count(step) != len(held):  # a slot of another step would do its harm unseen
            raise ShardMissing(step, next(shard for shard, other in enumerate(held) if other != step))
        loss = total_loss(step, self._segment.shard_losses.tolist())
        return sum(self._segment.shard_rows.tolist()), math.fsum(self._segment.shard_weights.tolist()), loss

    def _reduce(self, step: int, rate: float, scale: float) -> None:
        squares = self._segment.block_squares
        for block in self._blocks:
            squares[block.number] = sum_block(block.slots, block.sum)
            if not self._clips:
                self._update(block, step, rate, scale)

    def _apply(self, step: int, rate: float, scale: float) -> None:
        for block in self._blocks:
            self._update(block, step, rate, scale)

    def _update(self, block: _Block, step: int, rate: float, scale: float) -> None:
        (old, old_state), (new, new_state) = block.buffers[(step - 1) % 2], block.buffers[step % 2]
        self._optimizer.update(step, rate, old, block.sum, old_state, new, new_state, scale)
        if self._is_finite(block, new, rate * scale):
            self._segment.block_steps[block.number] = step

    def _is_finite(self, block: _Block, new: Array, factor: float) -> bool:
        """Whether the block's `new` parameters are: without a look at them where they cannot be otherwise.

        Of a plain update none has moved further than `factor` times the norm of the block's summed gradient. Squares
        too small for the dtype are no part of it: all are looked at where `factor` is so large that they could matter.
        """
        if not self._optimizer.is_plain:
            return is_finite(new)
        segment, number = self._segment, block.number
        reach = float(segment.block_reaches[number])
        if reach:
            reach += 2.0 * factor * math.sqrt(segment.block_squares[number])  # twice: for all that is rounded
        if not (0.0 < reach < FAR and factor < FAR):
            if not is_finite(new):
                return False
            reach = 2.0 * math.sqrt(square_sum(new))
        segment.block_reaches[number] = reach
        return True

    def _arrive(self, step: int, phase: int) -> None:
        """Say that this seat has finished `phase` of `step`."""
        words, word = self._segment.words, self._segment.arrived(self._number)
        words[word] = PHASES * step + phase
        if self._seats > 1:  # else nobody waits for it
            words.wake(word)

    def _await(self, step: int, phase: int, seats: int) -> None:
        """Return when the first `seats` have."""
        segment, value = self._segment, PHASES * step + phase
        for seat in range(seats):
            if seat != self._number:
                segment.words.wait(segment.arrived(seat), value, self._spin, self._look)

    def _evaluate(self, split: int, which: int, number: int) -> None:
        segment = self._segment
        parameters = segment.best if which else self._parameters[segment.committed % 2]
        for shard in self._shards_of(-number):
            segment.evaluations[shard] = self._worker.evaluate(SPLITS[split], shard, parameters)
            segment.evaluated[shard] = number

    def _look(self) -> None:
        """Called before each block in a wait: whether to go on waiting."""
        if self._segment.words[STOP]:
            raise SeatStopped
        if time.monotonic() - self._looked_at > LOOK_AT_TRAINER_S:
            self._looked_at = time.monotonic()
            if self._trainer.ended():
                raise SeatStopped  # the trainer is gone, and nobody will say STOP
