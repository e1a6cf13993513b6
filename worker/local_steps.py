"""Local steps: each shard goes on by itself for a while, and only the sum of its steps is exchanged (`mode: local`).

A committed step is a round then. Each shard takes the committed parameters, one optimizer step on its part of each of
the round's minibatches, and puts what it has gone, start less end, into its gradient slot, times the weight of its
rows. So the exchange sums and divides as always; what it gets is the mean difference of all shards, and its optimizer,
the outer one, treats it as a gradient: at a learning rate of 1 the new parameters are the mean of the shards' own
(local SGD, Stich 2019; federated averaging, McMahan et al. 2017), and with Nesterov's momentum it is DiLoCo's outer
step (Douillard et al. 2023).

The inner optimizer's state is zero at the start of each round, its bias correction, too. Parameters, round and shard
decide all that happens, as they do for a gradient: whoever computes a shard anew finds the same bits.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.max_norm import MaxNorm
from core.network import NetworkSpec, network_graph, parameter_layout
from core.optimizers import OptimizerSpec, make_optimizer
from core.schedules import ScheduleSpec, learning_rate
from worker.plan import LocalPlan, StepPlan, StepReport
from worker.reduction import clip_factor, norm, square_sum

Array = NDArray[Any]
Gradient = Callable[[int, Array, Array, Array, float], tuple[float, float]]

# The outer optimizers by name. Nesterov's numbers are those that DiLoCo found best (section 3.1 of the paper).
OUTER: dict[str, OptimizerSpec] = {
    "average": OptimizerSpec("sgd", 1.0),
    "nesterov": OptimizerSpec("sgd", 0.7, momentum=0.9, nesterov=True),
}


def in_rounds(plan: StepPlan, outer: str) -> StepPlan:
    """`plan`, whose sampling has local steps, with its optimizer and schedule as the inner ones and `outer` outside."""
    sampling = plan.sampling
    steps = plan.steps // sampling.steps_per_epoch * sampling.minibatches
    local = LocalPlan(plan.optimizer, plan.schedule, steps)
    return replace(plan, optimizer=OUTER[outer], schedule=ScheduleSpec(), local=local)


def with_local_rate(plan: StepPlan, report: StepReport) -> StepReport:
    """The report of a round with the learning rate of its first local step, in place of the outer one's."""
    if plan.local is None:
        return report
    first = plan.sampling.minibatches_before(report.step) + 1
    local = plan.local
    rate = learning_rate(local.schedule, local.optimizer.learning_rate, first, local.steps)
    return replace(report, learning_rate=rate)


def vectors(optimizer: OptimizerSpec) -> int:
    """How many vectors of the parameters' length local steps with `optimizer` take."""
    return 2 * (1 + make_optimizer(optimizer).state_vectors)


class LocalSteps:
    """What one worker's shards take their local steps with: the inner optimizer and its buffers."""

    def __init__(self, plan: LocalPlan, network: NetworkSpec) -> None:
        self._plan, self._optimizer = plan, make_optimizer(plan.optimizer)
        self._takes_rate = self._optimizer.is_plain and plan.optimizer.clip_norm is None  # into the gradient
        layout, limit = parameter_layout(network_graph(network)), plan.optimizer.max_norm
        self._blocks, dtype = layout.blocks, np.dtype(network.dtype)
        self._max_norm = None if limit is None else MaxNorm(layout, dtype, limit)
        # Taking turns. Row by row, since the network knows the arrays of parameters that it was given by identity.
        self._parameters = [np.empty(layout.size, dtype) for _ in range(2)]
        self._states = [np.zeros((self._optimizer.state_vectors, layout.size), dtype) for _ in range(2)]

    def difference(
        self, before: int, minibatches: Sequence[Array], parameters: Array, out: Array, gradient: Gradient
    ) -> tuple[float, float]:
        """Overwrite `out` (P,) with `parameters` less what a step for each of `minibatches` makes of them, times the
        weight of their rows. Returns the sum of the losses, each where it was met, and that weight.

        `before`: local steps before this round. `gradient` (step, rows, parameters, out, factor) -> (loss, weight),
        both sums, overwrites `out` with `factor` times the gradient of the mean loss. What is not finite comes out as
        such.
        """
        self._states[0].fill(0)
        at, loss, weight = parameters, 0.0, 0.0
        for number, rows in enumerate(minibatches):
            step = before + number + 1
            rate = learning_rate(self._plan.schedule, self._plan.optimizer.learning_rate, step, self._plan.steps)
            part, rows_weight = gradient(step, rows, at, out, rate if self._takes_rate else 1.0)
            loss, weight = loss + part, weight + rows_weight
            at = self._step(number, 1.0 if self._takes_rate else rate, at, out)
        with np.errstate(all="ignore"):
            np.subtract(parameters, at, out=out)
            np.multiply(out, weight, out=out)
        return loss, weight

    @np.errstate(all="ignore")
    def _step(self, number: int, rate: float, parameters: Array, gradient: Array) -> Array:
        """The parameters after local step `number`, from 0, of the round; `gradient` (P,) is used up."""
        clip_norm, factor = self._plan.optimizer.clip_norm, 1.0
        if clip_norm is not None:
            found = norm(square_sum(gradient[block]) for block in self._blocks)
            factor = clip_factor(found, clip_norm) if math.isfinite(found) else math.nan
        new, old_state, state = self._parameters[number % 2], self._states[number % 2], self._states[1 - number % 2]
        for block in self._blocks:
            before, after = list(old_state[:, block]), list(state[:, block])
            old, g = parameters[block], gradient[block]
            self._optimizer.update(number + 1, rate, old, g, before, new[block], after, factor)
        if self._max_norm is not None:
            self._max_norm.apply(new)
        return new
