import tracemalloc
import weakref

import numpy as np
import pytest

from core.activations import ACTIVATIONS
from core.draw import Draw
from core.errors import GraphError
from core.losses import LOSSES
from core.metrics import metric_sums
from core.network import Network, NetworkSpec, initial_parameters, parameter_count, summary

RNG = np.random.default_rng(0)


def spec_of(loss="cross_entropy", activation="tanh", dtype="float64", hidden=(6, 4), **changes):
    sizes = {"inputs": 5, "outputs": 2 if loss == "binary_cross_entropy" else 3}
    return NetworkSpec(**(sizes | changes), hidden=hidden, activation=activation, loss=loss, dtype=dtype)


def data(spec, rows):
    features = RNG.normal(size=(rows, spec.inputs)).astype(spec.dtype)
    if LOSSES[spec.loss].classes:
        return (
            features,
            RNG.integers(0, spec.outputs, rows).astype(np.int32),
            RNG.uniform(0, 2, rows).astype(spec.dtype),
        )
    targets = RNG.normal(size=(rows, spec.outputs)).astype(spec.dtype)
    return features, targets, RNG.uniform(0, 2, rows).astype(spec.dtype)


def gradient_of(network, parameters, *arrays):
    gradient = np.full_like(parameters, np.nan)
    return network.loss_and_gradient(parameters, gradient, *arrays), gradient


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("loss", "activation", "hidden"),
    [("cross_entropy", activation, (6, 4)) for activation in ACTIVATIONS]
    + [(loss, "tanh", hidden) for loss in LOSSES for hidden in [(), (6,), (6, 4)]],
)
def test_gradient(loss, activation, hidden, weighted):
    spec = spec_of(loss, activation, hidden=hidden)
    network, parameters = Network(spec, 7), initial_parameters(spec, 3)
    parameters += RNG.normal(size=len(parameters)) * 0.1  # biases that are not 0
    features, targets, weights = data(spec, 7)
    arrays = (features, targets, weights) if weighted else (features, targets)
    _, gradient = gradient_of(network, parameters, *arrays)
    differences = np.empty_like(gradient)
    for k in range(len(parameters)):
        losses = []
        for shift in (1e-5, -1e-5):
            shifted = parameters.copy()
            shifted[k] += shift
            losses.append(gradient_of(network, shifted, *arrays)[0])
        differences[k] = (losses[0] - losses[1]) / 2e-5
    assert np.abs(gradient - differences).max() < 1e-7 * np.abs(gradient).max()


def test_two_layer_perceptron_in_the_textbooks_vector_form():
    spec = spec_of("squared_error", "sigmoid", hidden=(4,))
    network, parameters = Network(spec, 6), initial_parameters(spec, 0)
    features, targets, weights = data(spec, 6)
    p = network.layout.views(parameters)
    h = 1 / (1 + np.exp(-(features @ p["layer1.weights"] + p["layer1.bias"])))
    o = h @ p["layer2.weights"] + p["layer2.bias"]
    signal = weights[:, None] * (o - targets)
    hidden_signal = signal @ p["layer2.weights"].T * h * (1 - h)
    loss, gradient = gradient_of(network, parameters, features, targets, weights)
    assert loss == pytest.approx((weights * 0.5 * ((o - targets) ** 2).sum(axis=1)).sum(), rel=1e-14)
    expected = [features.T @ hidden_signal, hidden_signal.sum(0), h.T @ signal, signal.sum(0)]
    np.testing.assert_allclose(gradient, np.concatenate([e.ravel() for e in expected]), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(network.predict(parameters, features), o, rtol=1e-13)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_gradients_of_shards_add_up_to_the_full_batch(loss, shards):
    spec = spec_of(loss, hidden=(16, 8))
    whole, parts = Network(spec, 64), Network(spec, 64)
    parameters = initial_parameters(spec, 1)
    features, targets, weights = data(spec, 64)
    full_loss, full = gradient_of(whole, parameters, features, targets, weights)
    loss_sum, total = 0.0, np.zeros_like(full)
    for rows in np.array_split(np.arange(64), shards):
        part_loss, part = gradient_of(parts, parameters, features[rows], targets[rows], weights[rows])
        loss_sum, total = loss_sum + part_loss, total + part
    assert loss_sum == pytest.approx(full_loss, rel=1e-12)
    assert np.abs(total - full).max() <= 1e-12 * np.abs(full).max()


def test_weights_count_rows():
    """A row of weight 2 is that row twice; one of weight 0 is not there."""
    spec = spec_of()
    network, parameters = Network(spec, 4), initial_parameters(spec, 0)
    features, targets, _ = data(spec, 3)
    weighted = gradient_of(network, parameters, features, targets, np.array([2.0, 0.0, 1.0]))
    rows = [0, 0, 2]
    repeated = gradient_of(network, parameters, features[rows], targets[rows])
    assert weighted[0] == pytest.approx(repeated[0], rel=1e-14)
    np.testing.assert_allclose(weighted[1], repeated[1], rtol=1e-12, atol=1e-15)


def test_no_rows_have_no_gradient():
    spec = spec_of()
    network, parameters = Network(spec, 4), initial_parameters(spec, 0)
    features, targets, weights = data(spec, 0)
    loss, gradient = gradient_of(network, parameters, features, targets, weights)
    assert loss == 0.0
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))
    assert network.predict(parameters, features).shape == (0, 3)
    np.testing.assert_array_equal(network.evaluate(parameters, features, targets), np.zeros(3))


def test_partial_batches_do_not_disturb_one_another():
    spec = spec_of("cross_entropy", "silu")
    network, parameters = Network(spec, 9), initial_parameters(spec, 0)
    batches = [data(spec, rows) for rows in (9, 4, 9, 1, 4)]
    expected = [gradient_of(Network(spec, 9), parameters, *batch) for batch in batches]
    for _ in range(2):
        for batch, (loss, gradient) in zip(batches, expected, strict=True):
            found_loss, found = gradient_of(network, parameters, *batch)
            assert found_loss == loss
            np.testing.assert_array_equal(found, gradient)


def test_a_network_that_is_told_to_forgets_what_it_was_given():
    spec = spec_of(hidden=(6,), dropout=0.5)
    network, parameters, arrays, draw = Network(spec, 7), initial_parameters(spec, 3), data(spec, 7), Draw(1, 2, 3)
    gradient = np.empty_like(parameters)
    loss = network.loss_and_gradient(parameters, gradient, *arrays, draw)
    network.loss_and_gradient(parameters, np.empty_like(parameters), *(array[:3] for array in arrays))
    found, given = gradient.tobytes(), [weakref.ref(array) for array in (parameters, gradient, *arrays)]
    again = parameters.copy(), np.empty_like(parameters), *(array.copy() for array in arrays)
    del parameters, gradient, arrays
    network.forget()
    assert [reference() for reference in given] == [None] * 5
    assert network.loss_and_gradient(*again, draw) == loss
    assert again[1].tobytes() == found


def test_same_inputs_same_bits_wherever_the_arrays_lie():
    spec = spec_of(dtype="float32", inputs=33, hidden=(17, 9))
    network, parameters = Network(spec, 20), initial_parameters(spec, 0)
    features, targets, weights = data(spec, 20)
    loss, gradient = gradient_of(network, parameters, features, targets, weights)
    for offset in (1, 3, 7):
        moved = [np.empty(array.size + offset, array.dtype)[offset:] for array in (parameters, gradient, features)]
        moved[0][:], moved[2][:] = parameters, features.ravel()
        moved[0].flags.writeable = False
        again = network.loss_and_gradient(moved[0], moved[1], moved[2].reshape(features.shape), targets, weights)
        assert again == loss
        np.testing.assert_array_equal(moved[1], gradient)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_scale_is_the_gradients_and_not_the_losss(loss):
    spec = spec_of(loss)
    network, parameters = Network(spec, 20), initial_parameters(spec, 0)
    arrays = data(spec, 20)
    expected, gradient = gradient_of(network, parameters, *arrays)
    scaled = np.empty_like(gradient)
    assert network.loss_and_gradient(parameters, scaled, *arrays, scale=-0.3) == expected
    np.testing.assert_allclose(scaled, -0.3 * gradient, rtol=1e-12, atol=1e-15)
    again = np.empty_like(gradient)
    network.loss_and_gradient(parameters, again, *arrays)
    np.testing.assert_array_equal(again, gradient)


@pytest.mark.parametrize(
    ("loss", "activation"),
    [("cross_entropy", activation) for activation in ACTIVATIONS] + [(loss, "relu") for loss in LOSSES],
)
def test_a_steady_state_step_allocates_nothing(loss, activation):
    """Two parameter buffers that take turns, full batches and partial ones: no array's worth of memory."""
    spec = spec_of(loss, activation, "float32", hidden=(64, 64), inputs=50)
    network = Network(spec, 256, small_product=100_000)  # which makes pieces of the smallest batch's products
    parameters = [initial_parameters(spec, seed) for seed in (0, 1)]
    gradient, batches = np.empty_like(parameters[0]), [data(spec, rows) for rows in (256, 100, 32)]

    def steps():
        for now in parameters:
            for batch in batches:
                network.loss_and_gradient(now, gradient, *batch)
                network.loss_and_gradient(now, gradient, *batch[:2])

    steps()
    tracemalloc.start()
    steps()
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    steps()
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - before < 2500  # views; the outputs of the smallest batch's layers would be 8,192
    assert after - before < 500


def test_extreme_parameters_stay_finite_and_diverged_ones_do_not_warn():
    spec = spec_of(activation="relu", dtype="float32")
    network, parameters = Network(spec, 4), initial_parameters(spec, 0)
    features, targets, weights = data(spec, 4)
    loss, gradient = gradient_of(network, parameters * 100, features * 1e4, targets, weights)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    loss, gradient = gradient_of(network, parameters * np.float32(1e30), features * 1e30, targets, weights)
    assert not np.isfinite(loss)
    assert not np.isfinite(gradient).all()
    assert not np.isfinite(network.predict(parameters * np.float32(1e30), features * 1e30)).all()
    network.evaluate(parameters * np.float32(1e30), features * 1e30, targets)


@pytest.mark.parametrize("loss", LOSSES)
def test_predict_and_evaluate_take_any_number_of_rows(loss):
    spec = spec_of(loss)
    network, parameters = Network(spec, 8), initial_parameters(spec, 0)
    features, targets, weights = data(spec, 21)
    predictions = network.predict(parameters, features)
    np.testing.assert_allclose(predictions, Network(spec, 21).predict(parameters, features), rtol=1e-12)
    loss_sum, _ = gradient_of(Network(spec, 21), parameters, features, targets, weights)
    expected = metric_sums(loss, loss_sum, predictions, targets, weights)
    np.testing.assert_allclose(network.evaluate(parameters, features, targets, weights), expected, rtol=1e-12)
    if LOSSES[loss].classes:
        np.testing.assert_allclose(predictions.sum(axis=1), 1.0, rtol=1e-14)


def test_arrays_that_do_not_fit_are_refused_by_name():
    spec = spec_of(dtype="float32")
    network, parameters = Network(spec, 4), initial_parameters(spec, 0)
    gradient, (features, targets, weights) = np.empty_like(parameters), data(spec, 4)
    for name, arrays in {
        "features": (parameters, gradient, features[:, :4], targets),
        "targets": (parameters, gradient, features, targets.astype(np.int64)),
        "weights": (parameters, gradient, features, targets, weights.astype(np.float64)),
        "layer1.bias": (parameters[:-1], gradient, features, targets),
        "layer2.bias": (parameters, gradient.astype(np.float64), features, targets),
    }.items():
        with pytest.raises(GraphError) as caught:
            network.loss_and_gradient(*arrays)
        assert name in caught.value.nodes
    with pytest.raises(GraphError, match="5 rows"):
        network.loss_and_gradient(parameters, gradient, *data(spec, 5))


def test_initial_parameters_are_a_function_of_spec_and_seed():
    spec = spec_of(hidden=(200,))
    first = initial_parameters(spec, 7)
    np.testing.assert_array_equal(first, initial_parameters(spec, 7))
    assert not np.array_equal(first, initial_parameters(spec, 8))
    narrow = initial_parameters(spec_of(hidden=(200,), dtype="float32"), 7)
    assert narrow.dtype == np.float32
    np.testing.assert_array_equal(narrow, first.astype(np.float32))
    views = Network(spec, 1).layout.views(first)
    assert not views["layer1.bias"].any()
    assert views["layer2.weights"].std() == pytest.approx(np.sqrt(2 / 203), rel=0.1)  # tanh: Glorot's
    rectified = Network(spec, 1).layout.views(initial_parameters(spec_of(activation="relu", hidden=(200,)), 7))
    assert rectified["layer2.weights"].std() == pytest.approx(np.sqrt(2 / 200), rel=0.1)  # He's
    chosen = initial_parameters(spec_of(activation="relu", initializer="glorot", hidden=(200,)), 7)
    np.testing.assert_array_equal(chosen, first)


def test_summary_counts_without_building():
    spec = spec_of(inputs=784, outputs=10, hidden=(256, 128))
    assert parameter_count(spec) == Network(spec, 1).layout.size == 235_146
    rows = summary(spec)
    assert sum(row["parameters"] for row in rows) == 235_146
    assert sum(row["flops"] for row in rows) == 6 * (784 * 256 + 256 * 128 + 128 * 10) - 2 * 784 * 256
    huge = spec_of(inputs=10**6, outputs=1, hidden=(10**6,))
    assert parameter_count(huge) == 10**12 + 2 * 10**6 + 1
    assert summary(huge)[0]["parameters"] == 10**12 + 10**6


def test_xor_is_learned():
    """What one unit cannot, two layers can: plain gradient descent on the four points."""
    spec = NetworkSpec(2, 2, (4,), "tanh", dtype="float64")
    network, parameters = Network(spec, 4), initial_parameters(spec, 0)
    features, targets = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], float), np.array([0, 1, 1, 0], np.int32)
    gradient = np.empty_like(parameters)
    for _ in range(500):
        network.loss_and_gradient(parameters, gradient, features, targets)
        parameters -= 0.5 * gradient
    np.testing.assert_array_equal(network.predict(parameters, features).argmax(axis=1), targets)
