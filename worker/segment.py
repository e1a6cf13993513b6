"""The memory that one job's processes share on one machine: what lies where, and who may write it.

A memfd of the trainer, which the workers open through /proc: it has no name, takes no room in /dev/shm, and is gone
with the last process that maps it, however that ended.

    control words    one cache line each (worker.futex): stop, command, and for each seat `arrived` and `done`
    command          what the seats are to do, written before the command word is raised: kind, argument, which, number
    reports          of the last REPORTS_KEPT steps: the fields of StepReport
    committed        the last committed step: written once its report is, and all that it leads to
    blocks           for each fixed block: the last step whose parameters are written and finite, its part of the
                     gradient's square sum, and how far from zero its parameters are at most (0: not known)
    shards           for each shard: the step its slot holds, rows, weight sum, loss sum; its evaluation's number, sums
    seats            for each seat: seconds a shard, and when it began the one it is at (worker.claims)
    slots            shards x parameters: the gradient of each shard's summed loss
    buffers          2 x (1 + state vectors) x parameters: step t lives in buffer t % 2
    best             parameters of the best epoch

A *seat* is a worker's place in the exchange, from 0; a seat's words have that worker as their one writer.
"""

import mmap
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker import memfd
from worker.futex import WORD_BYTES, Words

STOP, COMMAND, FIRST_SEAT = 0, 1, 2  # words; from FIRST_SEAT on two for each seat
END, RUN, EVALUATE = -1, 1, 2  # commands
FAILED = 2**31 - 1  # in a seat's `done` word: it was left with an error
PHASES = 4  # an `arrived` word holds PHASES * step + the phase of it that is finished
REPORTS_KEPT = 1024
NO_STEP = 0  # what a slot holds while it is being written
_ALIGNMENT = 64


@dataclass(frozen=True)
class SegmentLayout:
    """Sizes that decide where everything lies. `dtype` is the parameters'; `sums` the length of the metric sums."""

    parameters: int
    dtype: str
    state_vectors: int
    shards: int
    blocks: int
    seats: int
    sums: int

    @property
    def words(self) -> int:
        return FIRST_SEAT + 2 * self.seats

    def parts(self) -> dict[str, tuple[int, str, tuple[int, ...]]]:
        """Offset in bytes, dtype and shape of each array, in the order of the segment."""
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {
            "command": ("int64", (4,)),
            "reports": ("float64", (REPORTS_KEPT, 6)),
            "committed": ("int64", (1,)),
            "block_steps": ("int64", (self.blocks,)),
            "block_squares": ("float64", (self.blocks,)),
            "block_reaches": ("float64", (self.blocks,)),
            "shard_steps": ("int64", (self.shards,)),
            "shard_rows": ("int64", (self.shards,)),
            "shard_weights": ("float64", (self.shards,)),
            "shard_losses": ("float64", (self.shards,)),
            "evaluated": ("int64", (self.shards,)),
            "evaluations": ("float64", (self.shards, self.sums)),
            "seat_seconds": ("float64", (self.seats,)),
            "seat_began": ("float64", (self.seats,)),
            "slots": (self.dtype, (self.shards, self.parameters)),
            "buffers": (self.dtype, (2, 1 + self.state_vectors, self.parameters)),
            "best": (self.dtype, (self.parameters,)),
        }
        found, at = {}, self.words * WORD_BYTES
        for name, (dtype, shape) in shapes.items():
            found[name] = (at, dtype, shape)
            size = int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64))
            at += -(-size // _ALIGNMENT) * _ALIGNMENT
        found["end"] = (at, "uint8", (0,))
        return found

    @property
    def size(self) -> int:
        """Bytes of the whole segment."""
        return self.parts()["end"][0]


class Segment:
    """One mapping of a segment. The trainer creates it; a worker opens the trainer's."""

    def __init__(self, layout: SegmentLayout, descriptor: int) -> None:
        self.layout, self.descriptor = layout, descriptor
        memory = memoryview(mmap.mmap(descriptor, layout.size))
        self.words = Words(memory, layout.words)
        arrays: dict[str, NDArray[Any]] = {
            name: np.frombuffer(memory, dtype, int(np.prod(shape, dtype=np.int64)), at).reshape(shape)
            for name, (at, dtype, shape) in layout.parts().items()
            if name != "end"
        }
        self.command, self.reports, self.evaluations = arrays["command"], arrays["reports"], arrays["evaluations"]
        self.evaluated = arrays["evaluated"]
        self._committed = arrays["committed"]
        self.block_steps, self.block_squares = arrays["block_steps"], arrays["block_squares"]
        self.block_reaches = arrays["block_reaches"]
        self.shard_steps, self.shard_rows = arrays["shard_steps"], arrays["shard_rows"]
        self.shard_weights, self.shard_losses = arrays["shard_weights"], arrays["shard_losses"]
        self.seat_seconds, self.seat_began = arrays["seat_seconds"], arrays["seat_began"]
        self.slots, self.buffers, self.best = arrays["slots"], arrays["buffers"], arrays["best"]

    @classmethod
    def create(cls, layout: SegmentLayout) -> "Segment":
        """A new segment, all zero. MemoryError when the machine has no room for it."""
        descriptor = memfd.create(layout.size, "the job's segment")
        try:
            return cls(layout, descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def open(cls, layout: SegmentLayout, path: str) -> "Segment":
        """The segment at `path` (see `path`), of another process of the same user."""
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return cls(layout, descriptor)
        finally:
            os.close(descriptor)  # the mapping stays

    @property
    def path(self) -> str:
        """Where other processes of this machine open it, as long as this process lives."""
        return memfd.path(self.descriptor)

    @property
    def committed(self) -> int:
        """The last committed step."""
        return int(self._committed[0])

    def commit(self, step: int, report: tuple[float, ...]) -> None:
        """All that `step` leads to is written: it is the committed one, and that is its report."""
        self.reports[step % REPORTS_KEPT] = report
        self._committed[0] = step

    def restore(self, step: int, state: NDArray[Any], best: NDArray[Any] | None) -> None:
        """`step` is the committed one, with that `state` (1+S, P). While nobody reads."""
        self.buffers[step % 2] = state
        self.block_reaches[...] = 0.0
        if best is not None:
            self.best[...] = best
        self._committed[0] = step

    def activity(self) -> int:
        """A number that changes whenever a seat gets on."""
        seats = range(self.layout.seats)
        words = sum(self.words[self.arrived(seat)] + self.words[self.done(seat)] for seat in seats)
        return words + int(self.shard_steps.sum())

    def arrived(self, seat: int) -> int:
        """The index of the seat's word that says which phase of which step it has finished."""
        return FIRST_SEAT + 2 * seat

    def done(self, seat: int) -> int:
        """The index of the seat's word that says which command it has finished."""
        return FIRST_SEAT + 2 * seat + 1
