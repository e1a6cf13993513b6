"""The parameter aggregator: reduces a step's gradient slots in shard order and applies the optimizer.

Several of them share a vector between them, neighbouring blocks each: what each has reduced goes to all, so that each
takes the same norm of the same blocks in the same order, and comes to the same step.
"""

import gc
import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.max_norm import MaxNorm
from core.network import initial_parameters, network_graph, parameter_layout
from core.optimizers import make_optimizer
from core.schedules import learning_rate
from worker.aggregator_seat import AggregatorSeat
from worker.errors import Diverged, StepRefused
from worker.numerics import fingerprint, limit_threads
from worker.plan import Reduced, ShardReport, StepPlan, StepReport
from worker.reduction import clip_factor, culprit, evidence, is_finite, norm, shares, span, sum_block, total_loss
from worker.wiring import Place, Standing, Stretch, Wiring

Array = NDArray[Any]
REPORTS_KEPT = 1024  # more than any trainer has done without hearing of them


class ParameterAggregator:
    """Parameters, optimizer state and the best epoch's parameters of one job, or of its share of the blocks: (P,) is
    the size of the share. `begin` first.

    Updates are out of place: until a step is whole, the committed one is untouched.
    """

    def __init__(self) -> None:
        self.committed = 0  # the last step that was applied
        self._seat: AggregatorSeat | None = None

    def numerics(self) -> str:
        """Which build computes here: norms and initial weights are the kernels', too (worker.numerics)."""
        return fingerprint()

    def begin(self, plan: StepPlan, seed: int, number: int = 0, of: int = 1) -> Array:
        """Take the job on, share `number` of `of`, at step 0 with the initial parameters of `seed`; returns them, (P,).

        Of several, where the plan limits no unit's norm: that goes across blocks.
        """
        limit_threads(plan.threads_per_worker)
        self._plan, self._optimizer = plan, make_optimizer(plan.optimizer)
        layout, limit = parameter_layout(network_graph(plan.network)), plan.optimizer.max_norm
        blocks = shares(layout.blocks, of)[number]
        part = span(blocks)
        self._blocks = [slice(block.start - part.start, block.stop - part.start) for block in blocks]
        self._max_norm = None if limit is None else MaxNorm(layout, plan.network.dtype, limit)
        parameters = initial_parameters(plan.network, seed)[part].copy()
        vectors = 1 + self._optimizer.state_vectors
        # Row 0 holds the parameters, the others the optimizer's state.
        self._buffers = [np.zeros((vectors, parameters.size), parameters.dtype) for _ in range(2)]
        self._buffers[0][0] = parameters
        self._sum, self._divisor = np.empty_like(parameters), 1.0  # of the gradients, and of their rows' weights
        self._best = parameters.copy()
        self._updated: tuple[float, bool] | None = None  # what `update` has come to
        self.committed = 0
        self._reports: deque[StepReport] = deque(maxlen=REPORTS_KEPT)
        if self._seat is not None:
            self._seat.close()
        self._seat = AggregatorSeat(self, plan, number, of)
        return parameters

    def end(self) -> None:
        """Forget the job, and give its memory back."""
        if self._seat is not None:
            self._seat.close()
        self.__dict__.clear()
        self.committed, self._seat = 0, None
        gc.collect()  # an actor's frames refer to themselves: a divergence would keep its workers' memory mapped

    def parameters(self, which: str = "current") -> Array:
        """The committed parameters ("current"), those that the last step began from ("previous"), those that the next
        one leads to ("next") or the kept ones ("best"), (P,): read them before the next step. "previous" only after a
        step; "next" only after `update`, and in the place of the previous ones."""
        if which == "best":
            return self._best
        step = self.committed - (which != "current")
        found: Array = self._buffers[step % 2][0]
        return found

    def state(self) -> Array:
        """The committed parameters (row 0) and the optimizer's state (the other rows), (1+S, P): not a copy."""
        found: Array = self._buffers[self.committed % 2]
        return found

    def restore(self, step: int, state: Array, best: Array | None) -> Array:
        """Go on as if `step` had just been committed with `state` (see `state`) and `best` was kept before, if any was.

        Returns the parameters, (P,). "previous" is unknown until the next step.
        """
        self._buffers[step % 2][...] = state
        if best is not None:
            self._best[...] = best
        self.committed = step
        self._reports.clear()
        return self.parameters()

    def keep_best(self) -> None:
        """Keep the committed parameters as the best."""
        self._best[...] = self.parameters()

    def apply(self, step: int, gradients: Sequence[Array], reports: Sequence[ShardReport]) -> StepReport:
        """Commit `step`, from the shards' gradients (P,) and reports, both in shard order.

        Raises StepRefused unless `step` follows the committed one; Diverged, with nothing committed, when a loss, the
        summed gradient or a new parameter is not finite.
        """
        return self.commit(step, [self.reduce(step, gradients, reports)], reports)

    def reduce(self, step: int, gradients: Sequence[Array], reports: Sequence[ShardReport]) -> Reduced:
        """The first half of `apply`: sum the share's gradients up. It may be done again. Raises StepRefused."""
        self._check(step)
        self._divisor = _weight(reports) or 1.0
        self._updated = None
        squares = tuple(
            sum_block([gradient[block] for gradient in gradients], self._sum[block]) for block in self._blocks
        )
        return Reduced(squares, () if math.isfinite(norm(squares)) else evidence(gradients))

    def update(self, step: int) -> bool:
        """Between the halves: have the next parameters already, if they take nothing of the other shares; else False.

        The step is not committed by it, and may be reduced anew. Raises StepRefused.
        """
        self._check(step)
        if self._plan.optimizer.clip_norm is not None:
            return False
        self._updated = self._apply(step, 1.0)
        return True

    def commit(self, step: int, reduced: Sequence[Reduced], reports: Sequence[ShardReport]) -> StepReport:
        """The second half, once: `reduced` is what all that share the vector have reduced, in the order of its blocks.

        Raises as `apply` does; what diverges in another share's new parameters is told by that one alone.
        """
        self._check(step)
        loss = total_loss(step, [report.loss_sum for report in reports])
        gradient_norm = norm([square for part in reduced for square in part.squares]) / self._divisor
        if not math.isfinite(gradient_norm):
            raise Diverged(step, culprit([part.shards for part in reduced if part.shards]), "gradient")
        factor = clip_factor(gradient_norm, self._plan.optimizer.clip_norm)
        rate, sound = self._updated or self._apply(step, factor)
        if not sound:
            raise Diverged(step, None, "weight vector")
        self.committed = step
        rows, weight = sum(report.rows for report in reports), _weight(reports)
        committed = StepReport(step, rows, weight, loss / (weight or 1.0), gradient_norm, rate)
        self._reports.append(committed)
        return committed

    def reports_after(self, step: int) -> list[StepReport]:
        """The reports of the steps committed after `step`, for who has missed them."""
        return [report for report in self._reports if report.step > step]

    # As messages, whose parts are results of other processes: each shard's gradient in shard order, what each share has
    # reduced in their order, each worker's tuple of reports in any order.

    def apply_parts(self, step: int, *parts: Any) -> tuple[Array, StepReport]:
        """`apply`: gradients, then reports."""
        gradients, reports = parts[: self._plan.shards], _in_order(parts[self._plan.shards :])
        report = self.apply(step, gradients, reports)
        return self.parameters(), report

    def reduce_parts(self, step: int, *parts: Any) -> Reduced:
        """`reduce`: gradients, then reports."""
        return self.reduce(step, parts[: self._plan.shards], _in_order(parts[self._plan.shards :]))

    def commit_parts(self, step: int, shares: int, *parts: Any) -> tuple[Array, StepReport]:
        """`commit`: what the `shares` have reduced, then reports."""
        report = self.commit(step, parts[:shares], _in_order(parts[shares:]))
        return self.parameters(), report

    # Over sockets: worker.aggregator_seat.

    def listen(self, host: str) -> Place:
        """Be reached by that address of this machine."""
        return self._seated().listen(host)

    def serve(self, wiring: Wiring, first: int, last: int) -> Stretch:
        """Take steps."""
        return self._seated().serve(wiring, first, last)

    def standing(self) -> Standing:
        """Where it is."""
        return self._seated().standing()

    def commit_kept(self, reduced: Sequence[Reduced]) -> StepReport:
        """Commit the step that was reduced last."""
        return self._seated().commit_kept(reduced)

    def give_up(self, generation: int) -> None:
        """By another thread: leave what is done for it."""
        if (seat := self._seat) is not None:
            seat.give_up(generation)

    def _seated(self) -> AggregatorSeat:
        assert self._seat is not None
        return self._seat

    def _check(self, step: int) -> None:
        if step != self.committed + 1:
            raise StepRefused(step, self.committed)

    def _apply(self, step: int, factor: float) -> tuple[float, bool]:
        """Write what `step` leads to beside what is committed: the learning rate, and whether all of it is finite.

        `factor`: of the mean gradient.
        """
        plan, scale = self._plan, factor / self._divisor
        rate = learning_rate(plan.schedule, plan.optimizer.learning_rate, step, plan.steps)
        old, new, sound = self._buffers[self.committed % 2], self._buffers[step % 2], True
        for block in self._blocks:
            state, new_state = list(old[1:, block]), list(new[1:, block])
            before, after = old[0, block], new[0, block]
            self._optimizer.update(step, rate, before, self._sum[block], state, after, new_state, scale)
            sound = sound and is_finite(after)
        if self._max_norm is not None:
            self._max_norm.apply(new[0])
        return rate, sound


def _weight(reports: Sequence[ShardReport]) -> float:
    return math.fsum(report.weight_sum for report in reports)


def _in_order(workers: Sequence[Sequence[ShardReport]]) -> list[ShardReport]:
    return sorted((report for reports in workers for report in reports), key=lambda report: report.shard)
