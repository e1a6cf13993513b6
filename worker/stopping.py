"""Early stopping, as a pure decision: which epoch is the best so far, and whether to go on."""

import math
from dataclasses import dataclass, replace

from worker.plan import EarlyStopping


@dataclass(frozen=True)
class StoppingState:
    """What is remembered from epoch to epoch. `best_epoch` is None before the first."""

    best_epoch: int | None = None
    best_loss: float = math.inf


@dataclass(frozen=True)
class StoppingDecision:
    """What follows from one epoch's validation loss."""

    state: StoppingState
    is_best: bool
    stop: bool


def decide(rule: EarlyStopping, state: StoppingState, epoch: int, loss: float) -> StoppingDecision:
    """Judge `epoch` (from 1) by its validation `loss`. The first epoch is the best until another gains."""
    if state.best_epoch is None or loss < state.best_loss - rule.minimum_gain:
        return StoppingDecision(replace(state, best_epoch=epoch, best_loss=loss), is_best=True, stop=False)
    return StoppingDecision(state, is_best=False, stop=epoch - state.best_epoch >= rule.patience)
