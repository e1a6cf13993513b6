"""Products in pieces: which pieces, and that they are the product."""

import numpy as np
import pytest

from core.network import Network, NetworkSpec, initial_parameters
from core.products import multiply, pieces

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("size", "others", "largest", "tiles", "widths"),
    [
        (256, 8 * 784, 10**6, (64, 32), [128, 128]),  # 159 would do
        (784, 32 * 256, 10**6, (16,), [112] * 7),
        (784, 32 * 256, 10**6, (64,), [64] * 12 + [16]),
        (256, 32 * 784, 10**6, (64, 32), [32] * 8),
        (128, 8 * 256, 10**6, (64, 32), []),  # small as a whole
        (256, 64 * 784, 10**6, (64, 32), []),  # 19 columns are too few
        (256, 8 * 784, 0, (64, 32), []),
    ],
)
def test_pieces_cover_all_in_order_and_are_small_enough(size, others, largest, tiles, widths):
    found = pieces(size, others, largest, tiles)
    assert [piece.stop - piece.start for piece in found] == widths
    if found:
        np.testing.assert_array_equal(np.concatenate([np.arange(size)[piece] for piece in found]), np.arange(size))
        assert max(widths) * others <= largest


@pytest.mark.parametrize("by", [(), (slice(0, 16), slice(16, 20))])
def test_a_product_is_the_same_in_pieces(by):
    x, y = RNG.normal(size=(7, 20)).T, RNG.normal(size=(7, 5))
    z = np.empty((20, 5))
    multiply(x, y, z, by)
    np.testing.assert_allclose(z, x @ y, rtol=1e-13)
    across = np.empty((5, 20))
    if by:
        multiply(x, y, across.T, by)  # columns of a product are rows of the transposed one
        np.testing.assert_allclose(across, (x @ y).T, rtol=1e-13)


@pytest.mark.parametrize("rows", [1, 2, 8, 31, 32, 33])
def test_a_network_computes_the_same_with_small_products_and_without(rows):
    spec = NetworkSpec(90, 5, (80, 220, 75), dtype="float64")
    parameters, features = initial_parameters(spec, 0), RNG.normal(size=(rows, 90))
    targets = RNG.integers(0, 5, rows).astype(np.int32)
    whole, cut = Network(spec, rows), Network(spec, rows, small_product=rows * 90 * 70)
    gradients = np.empty((2, parameters.size))
    losses = [
        network.loss_and_gradient(parameters, gradient, features, targets)
        for network, gradient in zip((whole, cut), gradients, strict=True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)
