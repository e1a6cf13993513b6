"""What the random numbers of a step depend on, and they on nothing else: whoever computes it anew draws the same."""

from typing import NamedTuple


class Draw(NamedTuple):
    """Of one shard's minibatch. `level`: how much of the learning rate the schedule leaves at this step."""

    seed: int
    step: int  # of the minibatch, from 1
    shard: int
    level: float = 1.0
