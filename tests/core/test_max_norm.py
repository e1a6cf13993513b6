import tracemalloc

import numpy as np
import pytest

from core.max_norm import MaxNorm
from core.parameters import BLOCK, ParameterLayout

RNG = np.random.default_rng(0)
LAYOUT = ParameterLayout(("w", "b", "v"), ((5, 3), (3,), (3, 4)))


def test_long_columns_are_shortened_and_nothing_else_is_touched():
    flat = RNG.normal(size=LAYOUT.size)
    before = {name: view.copy() for name, view in LAYOUT.views(flat).items()}
    MaxNorm(LAYOUT, np.float64, 1.5).apply(flat)
    after = LAYOUT.views(flat)
    np.testing.assert_array_equal(after["b"], before["b"])
    for name in ("w", "v"):
        long = np.linalg.norm(before[name], axis=0)
        np.testing.assert_allclose(np.linalg.norm(after[name], axis=0), np.minimum(long, 1.5), rtol=1e-14)
        np.testing.assert_array_equal(after[name][:, long <= 1.5], before[name][:, long <= 1.5])
        np.testing.assert_allclose(after[name], before[name] * np.minimum(1.5 / long, 1), rtol=1e-14)
    assert (np.linalg.norm(before["w"], axis=0) > 1.5).any()
    assert (np.linalg.norm(before["v"], axis=0) < 1.5).any()


def test_a_matrix_of_several_parts_and_one_wider_than_a_part():
    layout = ParameterLayout(("w", "v"), ((5, BLOCK // 2), (2, BLOCK + 1)))
    flat = RNG.normal(size=layout.size).astype(np.float32)
    expected = [
        w * np.minimum(0.7 / np.linalg.norm(w.astype(float), axis=0), 1) for w in layout.views(flat.copy()).values()
    ]
    limit = MaxNorm(layout, np.float32, 0.7)
    limit.apply(flat)
    for found, right in zip(layout.views(flat).values(), expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-5)
    tracemalloc.start()
    limit.apply(flat)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000


def test_zeros_stay_and_what_is_not_finite_passes_without_a_warning():
    flat = np.zeros(LAYOUT.size, np.float32)
    MaxNorm(LAYOUT, np.float32, 1.0).apply(flat)
    assert not flat.any()
    flat[0] = np.nan
    MaxNorm(LAYOUT, np.float32, 1.0).apply(flat)
    assert np.isnan(flat[0])
    assert np.isfinite(flat[1:3]).all()


@pytest.mark.parametrize("limit", [1e-3, 3.0])
def test_again_changes_next_to_nothing(limit):
    flat = RNG.normal(size=LAYOUT.size)
    MaxNorm(LAYOUT, np.float64, limit).apply(flat)
    again = flat.copy()
    MaxNorm(LAYOUT, np.float64, limit).apply(again)
    np.testing.assert_allclose(again, flat, rtol=1e-15)
