"""Where the next worker goes, by figures alone."""

import pytest

from worker.placement import PACK, SPREAD, STRATEGIES, Node, choose

NODES = (Node("a", 2, 3), Node("b", 4, 5), Node("c", 1, 2))


def placed(strategy: str, workers: int, busy: dict[str, int] | None = None) -> str:
    """The nodes of that many workers, one letter each; fewer where there is no room."""
    everyone, own, found = dict(busy or {}), dict[str, int](), ""
    for _ in range(workers):
        at = choose(NODES, everyone, own, strategy)
        if at is None:
            break
        found += at
        everyone[at], own[at] = everyone.get(at, 0) + 1, own.get(at, 0) + 1
    return found


@pytest.mark.parametrize(
    ("strategy", "busy", "wanted"),
    [
        (PACK, {}, "aabbbbcbac"),  # each core once, the trainer's node first; then what slots there are
        (PACK, {"a": 2}, "bbbbcbca"),
        (PACK, {"a": 1, "b": 3}, "acbabc"),
        (SPREAD, {}, "abcbabbcab"),
        (SPREAD, {"a": 2}, "bcbbbacb"),
    ],
)
def test_cores_come_before_shared_cores(strategy: str, busy: dict[str, int], wanted: str) -> None:
    assert placed(strategy, 12, busy) == wanted


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_slots_are_the_limit(strategy: str) -> None:
    assert len(placed(strategy, 99)) == 10
    assert choose((), {}, {}, strategy) is None
    assert choose([Node("head", 4, 0)], {}, {}, strategy) is None
