"""When a trainer looks inside its network, and under which names what it sees is kept (core.diagnostics)."""

import math
from collections.abc import Mapping

LOOKS = 50  # at most, in a job
PREFIX = "diagnostics/"  # MLflow's pages show what follows a common prefix as a section of its own


def is_due(epoch: int, epochs: int, looks: int = LOOKS) -> bool:
    """Whether to look at the end of `epoch`, from 1: after the first, then evenly spaced, at most `looks` times."""
    return (epoch - 1) % math.ceil(epochs / looks) == 0


def points(found: Mapping[str, float]) -> dict[str, float]:
    """Series and values. What is not finite is left out: the update ratio of a bias that was 0, a signal of no one."""
    return {PREFIX + name: value for name, value in found.items() if math.isfinite(value)}
