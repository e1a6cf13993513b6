"""The benchmark beside the peers: its rows, what it says of a peer that is not there, and time to accuracy."""

import numpy as np
import pytest

from benchmarks.contenders import Case
from benchmarks.prepared_arrays import write_prepared
from benchmarks.race import Options, Result, race
from benchmarks.time_to_accuracy import LIMIT_S, Reached, _duration, reached, rows, run
from benchmarks.two_cores import APART, GOALS, GROUPS, OURS, PEERS, batch_rows, rates_table


def groups(**rates):
    """Both groups of contenders; those that `rates` does not name are missing."""

    def result(name):
        key = name.replace(" ", "_").replace(".", "_").replace(",", "")
        return Result(name, [rates[key]] * 3) if key in rates else Result(name, missing=f"no {name}")

    return [{name: result(name) for name in (OURS, *names)} for names in GROUPS]


def test_each_peer_has_a_row_and_a_missing_one_is_not_met():
    found = groups(ours_2_workers=120.0, PyTorch=80.0, PyTorch_fused=100.0, Ray_Train=10.0)
    by_goal = {row.goal: row for row in batch_rows(128, found)}
    assert len(by_goal) == len(PEERS)
    torch = by_goal["2 workers against PyTorch, 2 threads"]
    assert (torch.ours, torch.peer, torch.target, torch.met) == (120.0, 100.0, 1.3, False)  # the faster of the two
    assert torch.ratio == pytest.approx(1.2)
    ray = by_goal["2 workers against Ray Train, 2 workers"]
    assert (ray.ratio, ray.target, ray.met) == (12.0, 5.0, True)
    jax = by_goal["2 workers against JAX, 2 cores"]
    assert (jax.peer, jax.ratio, jax.met) == (None, None, False)
    assert "no JAX" in jax.case


def test_where_ours_is_missing_no_row_is_met():
    assert not any(row.met for row in batch_rows(32, groups(PyTorch=80.0, JAX=90.0, Ray_Train=10.0)))


def test_the_goals_are_those_of_known_peers():
    assert set(GOALS) <= set(PEERS)


def test_the_table_has_all_contenders_and_says_who_is_missing():
    text = rates_table(32, groups(ours_2_workers=120.0, JAX=60.0))
    assert "| JAX | 60 | 2.00 |" in text
    assert "| Ray Train | no Ray Train | |" in text


def test_the_first_time_an_accuracy_is_reached_counts_and_nothing_after_the_limit():
    curve = [(1.0, 0.96), (2.0, 0.971), (3.0, 0.969), (4.0, 0.975), (LIMIT_S + 1, 0.99)]
    assert reached(curve) == Reached({0.97: 2.0}, 0.975)
    assert reached([]) == Reached({}, 0.0)


def test_a_peer_that_does_not_get_there_counts_as_the_limit_and_says_so():
    peers = {"slow": Reached({0.97: 8.0}, 0.979), "gone": Reached({}, missing="slow is not installed")}
    goal, at_97, at_98, gone, _ = rows(Reached({0.97: 2.0, 0.98: 4.0}, 0.981), peers)
    assert (goal.ours, goal.peer, goal.met) == (4.0, 5.0, True)
    assert (at_97.ratio, at_97.case) == (4.0, "slow")
    assert at_98.ratio == LIMIT_S / 4.0
    assert "best 97.90%" in at_98.case
    assert (gone.ratio, gone.met) == (None, False)
    assert "not installed" in gone.case


def test_where_ours_does_not_get_there_nothing_is_met():
    found = rows(Reached({0.97: 2.0}, 0.979), {"quick": Reached({0.97: 1.0, 0.98: 9.0}, 0.981)})
    assert [row.met for row in found] == [False, False, False]
    assert not any(row.met for row in rows(Reached({}, missing="ours ended with code 1"), {"slow": Reached({})}))


def test_without_mnist_time_to_accuracy_is_not_met_and_says_why():
    (row,) = run(Options())
    assert not row.met
    assert "--mnist" in row.case


@pytest.mark.parametrize(
    ("text", "seconds"), [("0.000 sec", 0.0), ("12.5 sec", 12.5), ("2 min  3.25 sec", 123.25), ("1 hr 1 min", 3660.0)]
)
def test_h2os_durations(text, seconds):
    assert _duration(text) == seconds


def test_rows_in_memory_are_a_prepared_dataset(tmp_path):
    features, targets = np.random.default_rng(0).random((10, 4), np.float32), np.arange(10) % 3
    prepared = write_prepared(tmp_path / "data", features, targets, test=2)
    assert prepared.rows == {"train": 8, "validation": 0, "test": 2}
    assert prepared.preprocessing.classes == (0, 1, 2)
    for split, part in (("train", slice(0, 8)), ("test", slice(8, 10))):
        x, y, weights = prepared.arrays(split)
        assert np.array_equal(x, features[part])
        assert np.array_equal(y, targets[part])
        assert weights is None


def test_two_workers_take_their_turns():
    """Real processes, which the race ends."""
    found = race([(name, Case((784, 256, 128, 10), 32, 2)) for name in (OURS, APART)], Options(2, 0.01))
    assert [(result.name, result.missing, len(result.rates)) for result in found] == [(OURS, "", 2), (APART, "", 2)]
