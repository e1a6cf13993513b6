"""Which rows are behind which step: every row once an epoch, whatever the numbers."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.sampling import Sampling, deal, evaluation_part, share

counts = st.integers(1, 12)
samplings = st.builds(Sampling, st.integers(1, 400), st.integers(1, 90), counts, st.integers(0, 2**63 - 1))


def batch(sampling: Sampling, step: int) -> list[np.ndarray]:
    """Each shard's rows of `step`."""
    epoch = sampling.epoch_of(step)
    return [sampling.order(epoch, shard)[sampling.part(step, shard)] for shard in range(sampling.shards)]


@given(samplings, st.integers(1, 3))
def test_every_row_is_used_exactly_once_an_epoch_in_batches_of_the_exact_size(sampling: Sampling, epoch: int) -> None:
    first = (epoch - 1) * sampling.steps_per_epoch + 1
    batches = [batch(sampling, step) for step in range(first, first + sampling.steps_per_epoch)]
    sizes = [sum(map(len, parts)) for parts in batches]
    remainder = sampling.rows % sampling.batch_size
    assert sizes == [sampling.batch_size] * sampling.full_steps + ([remainder] if remainder else [])
    used = np.concatenate([rows for parts in batches for rows in parts])
    assert sorted(used.tolist()) == list(range(sampling.rows))
    assert used.dtype == np.int64


@given(samplings, st.integers(1, 40), st.integers(1, 3))
def test_a_round_has_the_rows_of_its_minibatches(sampling: Sampling, local_steps: int, epoch: int) -> None:
    """In their order, and an epoch's last round is the only shorter one."""
    rounds = replace(sampling, local_steps=local_steps)
    first, before = (epoch - 1) * rounds.steps_per_epoch + 1, (epoch - 1) * sampling.steps_per_epoch
    for step in range(first, first + rounds.steps_per_epoch):
        assert (rounds.epoch_of(step), rounds.minibatches_before(step)) == (epoch, before)
        count = min(local_steps, epoch * sampling.steps_per_epoch - before)
        assert count == local_steps or step == first + rounds.steps_per_epoch - 1
        minibatches = [batch(sampling, number) for number in range(before + 1, before + count + 1)]
        for shard, rows in enumerate(batch(rounds, step)):
            assert rows.tolist() == np.concatenate([parts[shard] for parts in minibatches]).tolist()
        before += count
    assert before == epoch * sampling.steps_per_epoch


@given(samplings)
def test_the_parts_of_a_step_differ_by_one_row_at_most_and_no_more_is_planned_for(sampling: Sampling) -> None:
    sizes = [[len(part) for part in batch(sampling, step)] for step in range(1, sampling.steps_per_epoch + 1)]
    assert all(max(parts) - min(parts) <= 1 for parts in sizes)
    assert max(map(max, sizes)) == sampling.largest_part()


@given(samplings)
def test_shards_are_contiguous_and_share_the_rows(sampling: Sampling) -> None:
    ends = [0]
    for shard in range(sampling.shards):
        assert sampling.shard_start(shard) == ends[-1]
        ends.append(ends[-1] + sampling.shard_rows(shard))
        assert sorted(sampling.order(1, shard).tolist()) == list(range(*ends[-2:]))
    assert ends[-1] == sampling.rows


@given(samplings, st.integers(1, 5), counts)
def test_the_order_is_a_pure_function(sampling: Sampling, epoch: int, other: int) -> None:
    copy = pickle.loads(pickle.dumps(sampling))
    for shard in reversed(range(sampling.shards)):  # not the order in which the other was asked
        copy.order(other, shard)
        assert copy.order(epoch, shard).tobytes() == sampling.order(epoch, shard).tobytes()


def test_seed_epoch_and_shard_each_decide_the_order() -> None:
    sampling = Sampling(rows=300, batch_size=30, shards=3, seed=4)
    relative = [
        (drawn.order(epoch, shard) - drawn.shard_start(shard)).tolist()
        for drawn in (sampling, Sampling(300, 30, 3, 5))
        for epoch in (1, 2)
        for shard in range(3)
    ]
    assert len({tuple(order) for order in relative}) == len(relative)
    assert not any(order == sorted(order) for order in relative)


def test_an_order_is_what_it_has_always_been() -> None:
    """Weights that were trained with an earlier release come out again: the draw is part of what is promised."""
    assert Sampling(10, 4, 2, 7).order(1, 1).tolist() == [5, 6, 9, 7, 8]


def test_parts_may_be_empty() -> None:
    last = batch(Sampling(rows=10, batch_size=4, shards=4, seed=0), 3)
    assert [len(part) for part in last] == [1, 1, 0, 0]
    alone = batch(Sampling(rows=2, batch_size=64, shards=3, seed=0), 1)
    assert [len(part) for part in alone] == [1, 1, 0]


@pytest.mark.parametrize(("step", "epoch"), [(1, 1), (3, 1), (4, 2), (6, 2), (7, 3)])
def test_steps_are_numbered_through_the_epochs(step: int, epoch: int) -> None:
    assert Sampling(rows=10, batch_size=4, shards=1, seed=0).epoch_of(step) == epoch


@given(st.integers(0, 10**9), counts)
def test_shares_add_up(total: int, shards: int) -> None:
    shares = [share(total, shards, shard) for shard in range(shards)]
    assert sum(shares) == total
    assert shares == sorted(shares, reverse=True)
    assert shares[0] - shares[-1] <= 1


@given(st.integers(0, 500), counts)
def test_evaluation_parts_cover_a_split_in_order(rows: int, shards: int) -> None:
    covered = [row for shard in range(shards) for row in range(rows)[evaluation_part(rows, shards, shard)]]
    assert covered == list(range(rows))


@given(counts, counts)
def test_every_shard_is_dealt_to_one_worker(shards: int, workers: int) -> None:
    dealt = deal(shards, workers)
    assert len(dealt) == workers
    assert sorted(shard for shards in dealt for shard in shards) == list(range(shards))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
