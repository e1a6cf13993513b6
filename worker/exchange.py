"""The exchange: how gradients reach the parameters and parameters the workers. Trainers know only this protocol.

`InProcessExchange` is the plainest: one worker, one aggregator, no process between them. It is the oracle that the
others are held against, bit for bit.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from core.metrics import zero_sums
from worker.aggregator import ParameterAggregator
from worker.gradient_worker import GradientWorker
from worker.numerics import limit_threads
from worker.plan import StepPlan, StepReport, TrainerEvent

Array = NDArray[Any]
Tell = Callable[[TrainerEvent], None]


class Exchange(Protocol):
    """One job's steps. All methods are called by one thread, the trainer's."""

    @property
    def workers(self) -> int:
        """How many workers take part now."""

    @property
    def failures(self) -> int:
        """How many workers have been lost so far."""

    @property
    def numerics(self) -> str:
        """The fingerprint that all workers share."""

    def scale(self, workers: int) -> None:
        """Go on with so many workers, at most one a shard: fewer from the next steps on, more as they come up."""

    def run_steps(self, count: int) -> list[StepReport]:
        """Commit the next `count` steps. Raises Diverged; TooManyFailures."""

    def evaluate(self, split: str, which: str = "current") -> NDArray[np.float64]:
        """The metric sums of a split, its shards' sums merged in shard order; `which`: current or best parameters."""

    def diagnose(self) -> dict[str, float]:
        """What the last committed step looks like from inside: GradientWorker.diagnose. Changes no weight.

        There is a step that was committed since this exchange was opened.
        """

    def keep_best(self) -> None:
        """Keep the committed parameters as the best."""

    def parameters(self, which: str = "current") -> Array:
        """A copy of the committed ("current") or the kept ("best") parameters, (P,)."""

    def snapshot(self) -> Array:
        """A copy of the committed parameters (row 0) and the optimizer's state (the other rows), (1+S, P)."""

    def restore(self, step: int, state: Array, best: Array | None) -> None:
        """Before the first step: go on after `step`, of which `state` is the snapshot; `best`: what was kept, (P,).

        `step` 0: begin with other parameters than the seed's.
        """

    def close(self) -> None:
        """Let the workers go. Nothing else is called afterwards."""


def merge(loss: str, outputs: int, parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The metric sums of a split from its shards', in shard order."""
    total = zero_sums(loss, outputs)
    for part in parts:
        total += part
    return total


class InProcessExchange:
    """All shards computed one after the other, in this process, with the plan's BLAS threads."""

    workers = 1
    failures = 0

    def __init__(self, plan: StepPlan, seed: int) -> None:
        self._limits = limit_threads(plan.threads_per_worker)
        self._plan, self._worker, self._aggregator = plan, GradientWorker(), ParameterAggregator()
        self.numerics = self._worker.attach(plan).numerics
        initial = self._aggregator.begin(plan, seed)
        self._slots = [np.empty_like(initial) for _ in range(plan.shards)]

    def scale(self, workers: int) -> None:
        """There is one, this process, whatever is asked for."""

    def run_steps(self, count: int) -> list[StepReport]:
        return [self._step(self._aggregator.committed + 1) for _ in range(count)]

    def _step(self, step: int) -> StepReport:
        parameters = self._aggregator.parameters()
        reports = [self._worker.gradient(step, k, parameters, slot) for k, slot in enumerate(self._slots)]
        return self._aggregator.apply(step, self._slots, reports)

    def evaluate(self, split: str, which: str = "current") -> NDArray[np.float64]:
        network, parameters = self._plan.network, self._aggregator.parameters(which)
        parts = self._worker.evaluations(split, tuple(range(self._plan.shards)), parameters)
        return merge(network.loss, network.outputs, parts)

    def diagnose(self) -> dict[str, float]:
        before, after = self._aggregator.parameters("previous"), self._aggregator.parameters()
        return self._worker.diagnose(self._aggregator.committed, before, after)

    def keep_best(self) -> None:
        self._aggregator.keep_best()

    def parameters(self, which: str = "current") -> Array:
        return self._aggregator.parameters(which).copy()

    def snapshot(self) -> Array:
        return self._aggregator.state().copy()

    def restore(self, step: int, state: Array, best: Array | None) -> None:
        self._aggregator.restore(step, state, best)

    def close(self) -> None:
        self._worker.detach()
        self._aggregator.end()
        self._limits.restore_original_limits()
