"""Learning-rate schedules: a pure function of base rate and step, so that any step can be had again."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from .specification import Specification, require_choice, require_number

_CYCLE_START, _CYCLE_RISE = 1 / 25, 0.3


@dataclass(frozen=True)
class ScheduleSpec(Specification):
    """A schedule by name, after a linear rise to the base rate over the fraction `warmup` of all steps.

    `factor`: what each drop of `step` leaves of the rate, and what `exponential` and `inverse` leave of it at the end.
    `every`: the fraction of the steps after warm-up from one drop of `step` to the next. The others use neither.
    """

    optional: ClassVar[tuple[str, ...]] = ("factor", "every")

    name: str = "constant"
    warmup: float = 0.0
    factor: float = 0.1
    every: float = 0.25

    def __post_init__(self) -> None:
        require_choice("name", self.name, SCHEDULES)
        require_number("warmup", self.warmup, least=0.0, below=1.0)
        require_number("factor", self.factor, above=0.0, below=1.0)
        require_number("every", self.every, above=0.0, below=1.0)


def constant(spec: ScheduleSpec, progress: float) -> float:
    """1 throughout."""
    return 1.0


def step(spec: ScheduleSpec, progress: float) -> float:
    """factor^floor(progress / every)."""
    return math.pow(spec.factor, math.floor(progress / spec.every + 1e-9))  # 0.3 / 0.1 is a drop's place too


def exponential(spec: ScheduleSpec, progress: float) -> float:
    """factor^progress: by the same factor from any step to the next."""
    return math.pow(spec.factor, progress)


def inverse(spec: ScheduleSpec, progress: float) -> float:
    """1 / (1 + k progress) with k = 1 / factor - 1: the textbook's eta / (1 + k t), whose sum diverges."""
    return 1.0 / (1.0 + (1.0 / spec.factor - 1.0) * progress)


def cosine(spec: ScheduleSpec, progress: float) -> float:
    """Half a cosine from 1 down to 0 (Loshchilov and Hutter 2017, SGDR, without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def one_cycle(spec: ScheduleSpec, progress: float) -> float:
    """Half a cosine from 1/25 up to 1 over three tenths, half a cosine down to 0 over the rest (Smith 2018)."""
    if progress < _CYCLE_RISE:
        return 1.0 - (1.0 - _CYCLE_START) * 0.5 * (1.0 + math.cos(math.pi * progress / _CYCLE_RISE))
    return 0.5 * (1.0 + math.cos(math.pi * (progress - _CYCLE_RISE) / (1.0 - _CYCLE_RISE)))


# The factor by name, for a progress in [0, 1): the part of the steps after warm-up that is done.
SCHEDULES: dict[str, Callable[[ScheduleSpec, float], float]] = {
    "constant": constant,
    "step": step,
    "exponential": exponential,
    "inverse": inverse,
    "cosine": cosine,
    "one_cycle": one_cycle,
}


def learning_rate(spec: ScheduleSpec, base: float, step: int, steps: int) -> float:
    """The learning rate of `step`, counted from 1, of `steps`; never 0 for a positive `base`.

    The last warm-up step and the first one after it have the base rate (`one_cycle` then starts lower); steps beyond
    `steps` have the last one's.
    """
    warmup_steps = round(spec.warmup * steps)
    if step <= warmup_steps:
        return base * step / warmup_steps
    progress = (min(step, steps) - 1 - warmup_steps) / max(steps - warmup_steps, 1)
    return base * SCHEDULES[spec.name](spec, max(progress, 0.0))


def scaled_rate(rate: float, batch_size: int, reference: int) -> float:
    """The linear scaling rule: `rate` suits minibatches of `reference` rows, what is returned those of `batch_size`.

    k times the rows make a gradient as good as k steps' (Goyal et al. 2017); with warm-up, it holds up to thousands.
    """
    return rate * batch_size / reference
