"""On which node a job's next worker goes. Pure: no bit depends on it, only how far gradients travel."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PACK, SPREAD = "pack", "spread"
STRATEGIES = (PACK, SPREAD)


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, by the name that actors' names have of it; `slots`: so many workers at most.

    `has_home`: the service's home is there under the same path, so that a trainer can be.
    """

    name: str
    cpus: int
    slots: int
    has_home: bool = False


def choose(
    nodes: Sequence[Node], busy: Mapping[str, int], own: Mapping[str, int], strategy: str, idle_core: bool = False
) -> str | None:
    """The node for one more worker; None: all slots are taken, or with `idle_core` all cores.

    `nodes`: that of the trainer first. `busy`, `own`: how many workers of any job, of this job, each node has already.
    A core that nobody computes on comes before a node on which workers would share one. Then PACK takes the node that
    most of the job's workers are on (on the trainer's they share memory), SPREAD the one that fewest are on.
    """
    room = [node for node in nodes if busy.get(node.name, 0) < node.slots]
    idle = [node for node in room if busy.get(node.name, 0) < node.cpus]

    def preference(node: Node) -> tuple[float, ...]:
        mine, load = own.get(node.name, 0), busy.get(node.name, 0) / max(node.cpus, 1)
        return (mine, node is nodes[0], -load) if strategy == PACK else (-mine, -load, node is nodes[0])

    found = idle if idle_core else idle or room
    return max(found, key=preference).name if found else None


def choose_all(nodes: Sequence[Node], busy: Mapping[str, int], workers: int, strategy: str) -> list[str]:
    """The nodes of a new job's workers, one after the other as `choose` has them; fewer where there is no room."""
    places: list[str] = []
    for _ in range(workers):
        own = Counter(places)
        at = choose(nodes, Counter(busy) + own, own, strategy)
        places += [] if at is None else [at]
    return places


def trainer_place(nodes: Sequence[Node], places: Sequence[str]) -> str:
    """The node of the trainer whose workers are at `places`: theirs, where all are on one that has the home, for they
    share memory then; else the first, which is the controller's."""
    shared = {node.name for node in nodes if node.has_home}
    return places[0] if len(set(places)) == 1 and places[0] in shared else nodes[0].name
