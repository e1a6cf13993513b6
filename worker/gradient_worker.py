"""A worker: gradients and metric sums of whichever data shards it is given; it knows nothing of the others."""

import gc
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.class_weights import fold
from core.diagnostics import series, update_ratios
from core.draw import Draw
from core.network import Network
from core.schedules import learning_rate
from worker.fetched import prepared_here
from worker.gradient_seat import GradientSeat
from worker.local_steps import LocalSteps
from worker.numerics import fingerprint, limit_threads, machine, small_product
from worker.plan import Attached, ShardReport, StepPlan
from worker.reduction import shares, span
from worker.sampling import evaluation_part, share
from worker.seat import Seat, Seating
from worker.wiring import Stretch, Wiring

Array = NDArray[Any]
_EVALUATION_ROWS = 512  # rows evaluated at a time: bounds the planned buffers


class GradientWorker:
    """One job at a time: `attach`, then any shard of any step in any order, then `detach`."""

    def __init__(self, holder: str = "", read: Callable[[str, str, str, int], bytes] | None = None) -> None:
        """`holder`: whose it is (`hold`). `read` reads from its disk: worker.fetched.read_chunk, of that trainer."""
        self._plan: StepPlan | None = None
        self._seat: GradientSeat | None = None
        self._read = read
        self.holder = holder

    def hold(self, holder: str) -> bool:
        """Whether it was nobody's, and is now `holder`'s, a trainer's, until it detaches. By one thread alone."""
        if self.holder:
            return False
        self.holder = holder
        return True

    def attach(self, plan: StepPlan) -> Attached:
        """Map the prepared dataset, fetched before where this node has not got it, and plan the network's buffers; says
        what computes here, and where.

        The BLAS of the whole process is held to `plan.threads_per_worker` threads from now on: the bits depend on it.
        """
        limit_threads(plan.threads_per_worker)
        if self._seat is not None:
            self._seat.close()
        dtype = np.dtype(plan.network.dtype)
        self._plan, self._seat = plan, GradientSeat(self, plan)
        read = None if self._read is None else partial(self._read, self.holder, plan.folder)
        with prepared_here(plan.folder, plan.data_sha256, read) as prepared:
            self._arrays = {split: prepared.arrays(split) for split in prepared.rows}
        rows = max(plan.sampling.largest_part(), 1)
        self._network = Network(plan.network, rows, small_product(plan.threads_per_worker))
        self._evaluator = Network(plan.network, _EVALUATION_ROWS)
        features, targets, weights = self._arrays["train"]
        if prepared.class_weights is not None:
            weights = fold(prepared.class_weights, targets, weights)
        if weights is not None:
            weights = in_range(weights)
        self._arrays["train"] = features, targets, weights
        target_dtype = targets.dtype if targets.dtype.kind == "i" else dtype
        self._features = np.empty((rows, *features.shape[1:]), dtype)
        self._targets = np.empty((rows, *targets.shape[1:]), target_dtype)
        self._weights = None if weights is None else np.empty(rows, dtype)
        self._orders: dict[int, tuple[int, Array]] = {}
        self._local = None if plan.local is None else LocalSteps(plan.local, plan.network)
        self._half = np.empty(self._network.layout.size, np.float16) if plan.half_gradients else None
        return Attached(fingerprint(), machine(), os.getpid())

    def take_seat(self, seating: Seating) -> None:
        """Serve in a shared-memory exchange (worker.seat) until its trainer says END."""
        assert self._plan is not None
        Seat(self, self._plan, seating).serve()

    def serve(self, wiring: Wiring, number: int, first: int, last: int) -> Stretch:
        """Take part in steps of a socket exchange: GradientSeat.serve."""
        assert self._seat is not None
        return self._seat.serve(wiring, number, first, last)

    def give_up(self, generation: int) -> None:
        """By another thread: GradientSeat.give_up."""
        if (seat := self._seat) is not None:
            seat.give_up(generation)

    def detach(self) -> None:
        """Forget the job, give its memory back, and be nobody's: all at once, another thread may `hold` it."""
        try:
            if self._seat is not None:
                self._seat.close()
        finally:
            self.__dict__ = {"_plan": None, "_seat": None, "holder": "", "_read": self._read}
        gc.collect()  # an actor's frames refer to themselves: idle, it would keep its last job's segment mapped

    def gradient(self, step: int, shard: int, parameters: Array, gradient: Array) -> ShardReport:
        """Overwrite `gradient` (P,) with the gradient of the summed, weighted loss over the shard's rows of `step`.

        With local steps: with what they come to, which the exchange treats as a gradient (worker.local_steps). With
        half gradients its numbers are such as float16 has; those beyond its range are infinite.
        """
        rows = self._rows(step, shard)
        if self._local is None:
            loss, weight = self._sums(step, shard, rows, parameters, gradient)
        else:
            before, minibatches = self._minibatches(step, shard, rows)
            loss, weight = self._local.difference(
                before, minibatches, parameters, gradient, lambda number, *rest: self._sums(number, shard, *rest)
            )
        if self._half is not None:
            with np.errstate(all="ignore"):
                self._half[...] = gradient
            gradient[...] = self._half
        return ShardReport(step, shard, len(rows), weight, loss)

    def forget_vectors(self) -> None:
        """Refer to none of the vectors that `gradient` was given."""
        self._network.forget()

    def _sums(
        self, number: int, shard: int, rows: Array, parameters: Array, gradient: Array, factor: float | None = None
    ) -> tuple[float, float]:
        """Overwrite `gradient` with that of the summed loss over `rows`; the loss, and the rows' weight.

        `number`: of the minibatch, from 1, which decides with the shard what is drawn. `factor`: with
        that of so many times their mean loss instead.
        """
        count = len(rows)
        features, targets, weights = self._arrays["train"]
        x, y = self._features[:count], self._targets[:count]
        _take(features, rows, x)
        _take(targets, rows, y)
        w = None
        if weights is not None and self._weights is not None:
            w = self._weights[:count]
            _take(weights, rows, w)
        weight = float(count) if w is None else float(w.sum(dtype=np.float64))
        assert self._plan is not None
        schedule = self._plan.local or self._plan
        level = learning_rate(schedule.schedule, 1.0, number, schedule.steps)
        draw = Draw(self._plan.sampling.seed, number, shard, level)
        scale = 1.0 if factor is None else factor / (weight or 1.0)
        return self._network.loss_and_gradient(parameters, gradient, x, y, w, draw, scale), weight

    def gradients(self, step: int, shards: tuple[int, ...], *parts: Array) -> tuple[Any, ...]:
        """The gradient of each of `shards`, and last the tuple of their reports: one message each.

        `parts`: the parameters as aggregators share them. A gradient is cut as they are, piece after piece.
        """
        parameters, pieces = _whole(parts), shares(self._network.layout.blocks, len(parts))
        found = [np.empty_like(parameters) for _ in shards]
        reports = tuple(
            self.gradient(step, shard, parameters, gradient) for shard, gradient in zip(shards, found, strict=True)
        )
        return (*(gradient[span(piece)] for gradient in found for piece in pieces), reports)

    def evaluate(self, split: str, shard: int, parameters: Array) -> NDArray[np.float64]:
        """The metric sums of the shard's rows of `split` (core.metrics)."""
        assert self._plan is not None
        features, targets, weights = self._arrays[split]
        part = evaluation_part(len(features), self._plan.shards, shard)
        dtype = self._features.dtype
        x = np.ascontiguousarray(features[part], dtype)
        y = np.ascontiguousarray(targets[part], self._targets.dtype)
        w = None if weights is None else np.ascontiguousarray(weights[part], dtype)
        return self._evaluator.evaluate(parameters, x, y, w)

    def evaluations(self, split: str, shards: tuple[int, ...], *parts: Array) -> list[NDArray[np.float64]]:
        """`evaluate` for each of `shards`; `parts`: see `gradients`."""
        parameters = _whole(parts)
        return [self.evaluate(split, shard, parameters) for shard in shards]

    def diagnose_parts(self, step: int, *parts: Array) -> dict[str, float]:
        """`diagnose`; all parts of the parameters before, then all after."""
        half = len(parts) // 2
        return self.diagnose(step, _whole(parts[:half]), _whole(parts[half:]))

    def diagnose(self, step: int, before: Array, after: Array) -> dict[str, float]:
        """What `step` looks like from inside, a number for each name of core.diagnostics.series.

        Shard 0's part of it, or of its first minibatch, which always has rows, is computed again with the parameters
        `before` the step (P,); `after`: those that the step has led to.
        """
        number, minibatches = self._minibatches(step, 0, self._rows(step, 0))
        self._sums(number + 1, 0, minibatches[0], before, np.empty_like(before))
        return series(self._network.diagnostics(), update_ratios(self._network.layout, before, after))

    def _rows(self, step: int, shard: int) -> Array:
        assert self._plan is not None
        sampling = self._plan.sampling
        epoch = sampling.epoch_of(step)
        known = self._orders.get(shard)
        if known is None or known[0] != epoch:
            self._orders[shard] = known = (epoch, sampling.order(epoch, shard))
        return known[1][sampling.part(step, shard)]

    def _minibatches(self, step: int, shard: int, rows: Array) -> tuple[int, list[Array]]:
        """How many minibatches all steps before `step` have, and the shard's part of each of this one's, of `rows`."""
        assert self._plan is not None
        sampling = self._plan.sampling
        size = max(share(sampling.batch_size, sampling.shards, shard), 1)
        return sampling.minibatches_before(step), [rows[k : k + size] for k in range(0, len(rows), size)]


def in_range(weights: Array) -> Array:
    """Rows' weights (n,), whose ratios alone count, in a unit in which gradients' square sums are in the dtype's range.

    Another one, by a power of two, where the largest is beyond 2^20 or below its inverse: nanoseconds, say.
    """
    exponent = int(np.frexp(weights.max(initial=0.0))[1])
    return weights if abs(exponent) <= 20 else np.ldexp(weights, -exponent)


def _whole(parts: tuple[Array, ...]) -> Array:
    """The vector of which these are the parts, in order."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _take(source: Array, rows: Array, out: Array) -> None:
    """Rows of `source` into `out`. mode="clip": the default checks the indexes first and buffers the output."""
    if source.dtype == out.dtype:
        source.take(rows, 0, out, "clip")
    else:
        out[...] = source[rows]
