"""What crosses between the processes of a socket exchange; what is decided when a stretch of steps was cut short."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from worker.errors import RemoteLost
from worker.plan import Reduced, StepReport

# Of each shard's gradient: generation, step, shard, rows, weight sum, loss sum.
GRADIENT = struct.Struct("<QQQQdd")
# Of a share of the parameters: generation, the step that has led to it.
PARAMETERS = struct.Struct("<QQ")
# Of what an aggregator has reduced: generation, step, how many shards it has evidence of: none or all.
REDUCED = struct.Struct("<QQQ")


@dataclass(frozen=True)
class Place:
    """Where an aggregator listens, and which machine it sees (worker.numerics.machine)."""

    host: str
    port: int
    machine: str


@dataclass(frozen=True)
class Wiring:
    """Who is linked with whom: aggregators in the order of their shares, workers with the shards dealt to each.

    It holds for one `generation`; whatever carries another number is not heard.
    """

    generation: int
    secret: bytes
    aggregators: tuple[Place, ...]
    machines: tuple[str, ...]  # the workers'
    dealt: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Stretch:
    """What came of a stretch of steps: the reports of those that were committed, and what broke, if anything did."""

    reports: tuple[StepReport, ...] = ()
    broken: tuple[str, str] | None = None  # a link's peer and the reason


@dataclass(frozen=True)
class Standing:
    """Where an aggregator is: its committed step, and what it reduced in the last steps, by their numbers."""

    committed: int
    reduced: tuple[tuple[int, Reduced], ...]


def settle(standings: Sequence[Standing]) -> tuple[tuple[int, ...], tuple[Reduced, ...]]:
    """Which aggregators have yet to commit the step that others have committed, and what all have reduced in it.

    A step takes what all have reduced, so whoever has committed one has heard it of all, and nobody is further behind
    than that: the next one takes what all have reduced too. RemoteLost where it is otherwise: nothing whole is left.
    """
    committed = max(standing.committed for standing in standings)
    late = tuple(number for number, standing in enumerate(standings) if standing.committed < committed)
    if not late:
        return (), ()
    kept = (dict(each.reduced).get(committed) for each in standings)
    reduced = tuple(found for found in kept if found is not None)
    if len(reduced) < len(standings) or any(standings[number].committed < committed - 1 for number in late):
        raise RemoteLost("the aggregators are not at the same step")
    return late, reduced
