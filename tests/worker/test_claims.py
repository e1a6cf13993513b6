"""Claims: every token is taken once, by whoever comes first, and who is slow leaves to others what they do sooner."""

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.claims import MOST_SHARDS, SLOW, Claims, is_slow, is_worth, sure

_FORK = multiprocessing.get_context("fork")


@pytest.fixture
def claims() -> Iterator[Claims]:
    found = Claims.create()
    yield found
    found.close()


def test_tokens_are_taken_once_and_in_their_order(claims: Claims) -> None:
    claims.offer(7, range(5), 2)
    assert claims.left() == 5 + 2
    assert [claims.take(7) for _ in range(8)] == [0, 1, 2, 3, 4, None, None, None]
    assert claims.left() == 0


def test_a_token_of_another_step_is_thrown_away(claims: Claims) -> None:
    claims.offer(7, [3], 1)
    claims.offer(8, [5], 1)
    assert claims.take(8) == 5
    assert claims.take(8) is None


def test_nothing_is_left_after_clearing(claims: Claims) -> None:
    for _ in range(4):
        claims.offer(1, range(MOST_SHARDS), MOST_SHARDS)
    claims.clear()
    assert claims.left() == 0
    claims.offer(2, [1], 1)
    assert claims.take(2) == 1


def test_an_offer_of_no_shard_is_none(claims: Claims) -> None:
    claims.offer(1, [], 2)
    assert claims.take(1) is None


def _take_all(path: str, step: int, answers: "multiprocessing.queues.Queue[list[int]]") -> None:
    claims, found = Claims(path), list[int]()
    while (shard := claims.take(step)) is not None:
        found.append(shard)
    answers.put(found)


def test_processes_at_once_take_every_token_once(claims: Claims) -> None:
    answers = _FORK.Queue()
    for step in range(1, 6):
        claims.offer(step, range(MOST_SHARDS), 4)
        takers = [_FORK.Process(target=_take_all, args=(claims.path, step, answers)) for _ in range(4)]
        for taker in takers:
            taker.start()
        taken = Counter(shard for _ in takers for shard in answers.get())
        for taker in takers:
            taker.join()
            taker.close()
        assert taken == Counter(range(MOST_SHARDS))
    answers.close()
    answers.join_thread()


def test_no_descriptor_is_left() -> None:
    before = set(os.listdir("/proc/self/fd"))
    first = Claims.create()
    second = Claims(first.path)
    second.close()
    first.close()
    assert set(os.listdir("/proc/self/fd")) == before


@given(st.integers(2, 200), st.integers(2, 200))
def test_what_is_sure_is_half_at_most_and_the_same_for_all(shards: int, seats: int) -> None:
    found = sure(shards, seats)
    assert found % seats == 0
    assert 0 <= found <= shards / 2


SECONDS = st.floats(1e-6, 1e3)


@given(st.lists(st.one_of(st.just(0.0), SECONDS), min_size=1, max_size=9))
def test_somebody_is_never_slow(seconds: list[float]) -> None:
    """Else tokens could be left that nobody takes."""
    assert not all(is_slow(seat, seconds) for seat in range(len(seconds)))


def test_who_is_slow() -> None:
    assert [is_slow(seat, [1.0, SLOW, 1.01 * SLOW, 0.0]) for seat in range(4)] == [False, False, True, False]


@pytest.mark.parametrize(
    ("mine", "others", "left", "wanted"),
    [
        (4.0, [(1.0, 0.0)], 4, True),
        (4.0, [(1.0, 0.0)], 3, False),  # the other needs three seconds for all of them
        (4.0, [(1.0, 1.0)], 3, True),  # and another one for what it is at
        (4.0, [(1.0, 0.0), (1.0, 0.0)], 7, True),
        (4.0, [(1.0, 0.0), (1.0, 0.0)], 6, False),
        (2.0, [(3.0, 3.0), (1.0, 0.0)], 1, False),
        (1.0, [(1.0, 1.0)], 0, False),
    ],
)
def test_a_claim_is_worth_it_when_the_others_would_take_as_long(
    mine: float, others: list[tuple[float, float]], left: int, wanted: bool
) -> None:
    assert is_worth(mine, others, left) is wanted
