"""Learning-rate schedules: a pure function of base rate and step, so that any step can be had again."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from .specification import Specification, require_choice, require_number


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def cosine(progress: float) -> float:
    """Half a cosine from 1 down to 0 (Loshchilov and Hutter 2017, SGDR, without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


# The factor by name, for a progress in [0, 1): the part of the steps after warm-up that is done.
SCHEDULES: dict[str, Callable[[float], float]] = {"constant": constant, "cosine": cosine}


@dataclass(frozen=True)
class ScheduleSpec(Specification):
    """A schedule by name, after a linear rise to the base rate over the fraction `warmup` of all steps."""

    name: str = "constant"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        require_choice("name", self.name, SCHEDULES)
        require_number("warmup", self.warmup, least=0.0, below=1.0)


def learning_rate(spec: ScheduleSpec, base: float, step: int, steps: int) -> float:
    """The learning rate of `step`, counted from 1, of `steps`; never 0 for a positive `base`.

    The last warm-up step and the first one after it have the base rate; steps beyond `steps` have the last one's.
    """
    warmup_steps = round(spec.warmup * steps)
    if step <= warmup_steps:
        return base * step / warmup_steps
    progress = (min(step, steps) - 1 - warmup_steps) / max(steps - warmup_steps, 1)
    return base * SCHEDULES[spec.name](max(progress, 0.0))
