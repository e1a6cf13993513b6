"""Looks inside a network in training (core.diagnostics): when, who looks, and under which names it is kept."""

import math
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from worker.gradient_worker import GradientWorker
from worker.numerics import limit_threads
from worker.plan import StepPlan

LOOKS = 50  # at most, in a job
PREFIX = "diagnostics/"  # MLflow's pages show what follows a common prefix as a section of its own


def is_due(epoch: int, epochs: int, looks: int = LOOKS) -> bool:
    """Whether to look at the end of `epoch`, from 1: after the first, then evenly spaced, at most `looks` times."""
    return (epoch - 1) % math.ceil(epochs / looks) == 0


def points(found: Mapping[str, float]) -> dict[str, float]:
    """Series and values. What is not finite is left out: the update ratio of a bias that was 0, a signal of no one."""
    return {PREFIX + name: value for name, value in found.items() if math.isfinite(value)}


class Observer:
    """Looks on behalf of an exchange whose parameters this process sees, but whose workers are others.

    It costs this process what a job costs a worker: planned buffers, a gradient, the rows mapped.
    """

    def __init__(self, plan: StepPlan) -> None:
        self._limits = limit_threads(plan.threads_per_worker)
        self._worker = GradientWorker()
        self._worker.attach(plan)

    def diagnose(self, step: int, before: NDArray[Any], after: NDArray[Any]) -> dict[str, float]:
        """GradientWorker.diagnose."""
        return self._worker.diagnose(step, before, after)

    def close(self) -> None:
        """Give memory and threads back."""
        self._worker.detach()
        self._limits.restore_original_limits()
