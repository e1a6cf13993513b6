"""The lecture, second part: softmax, cross-entropy, and the two-layer perceptron, in scalar and in vectorized form."""

import math

import numpy as np
import pytest

from core.graph import Graph, Input, Node, Parameter
from core.losses import CrossEntropy
from core.network import Network, NetworkSpec
from core.storage import ROWS


def test_softmax_of_logarithms_is_the_shares():
    """e^(ln 1), e^(ln 2), e^(ln 5) are 1, 2, 5, of a total of 8."""
    spec = NetworkSpec(1, 3, (), dtype="float64")
    parameters = np.array([0.0, 0.0, 0.0, math.log(1), math.log(2), math.log(5)])  # weights 0, biases the logits
    np.testing.assert_allclose(
        Network(spec, 1).predict(parameters, np.zeros((1, 1))), [[1 / 8, 2 / 8, 5 / 8]], rtol=1e-14
    )


def cross_entropy():
    return Graph(Parameter("a", (ROWS, 3)), Input("t", (ROWS,), np.int32), Node("L", CrossEntropy(), "a", "t"))


@pytest.mark.parametrize(
    ("target", "loss", "signal"),
    [
        (0, math.log(8), [1 / 8 - 1, 2 / 8, 5 / 8]),
        (1, math.log(4), [1 / 8, 2 / 8 - 1, 5 / 8]),
        (2, math.log(8 / 5), [1 / 8, 2 / 8, 5 / 8 - 1]),
    ],
)
def test_cross_entropy_sends_back_what_was_said_less_what_was_meant(run, target, loss, signal):
    """Outputs y = (1, 2, 5) / 8, target one-hot t: L = -ln y_t, dL/da = y - t."""
    value, gradients = run(cross_entropy(), {"a": np.log([[1.0, 2.0, 5.0]]), "t": np.array([target])}, "L")
    assert value.item() == pytest.approx(loss, rel=1e-14)
    np.testing.assert_allclose(gradients["a"], [signal], rtol=1e-13)


def test_the_error_signals_of_cross_entropy_cancel(run):
    """y and t both add up to 1: what one class gains the others lose, and a shift of all logits changes nothing."""
    logits = np.array([[0.3, -1.2, 2.0]])
    value, gradients = run(cross_entropy(), {"a": logits, "t": np.array([1])}, "L")
    shifted, _ = run(cross_entropy(), {"a": logits + 100.0, "t": np.array([1])}, "L")
    assert gradients["a"].sum() == pytest.approx(0.0, abs=1e-15)
    assert shifted.item() == pytest.approx(value.item(), rel=1e-13)


# A two-layer perceptron, 2 inputs, 2 logistic hidden units, 1 linear output, whose every net input is a multiple of
# ln 3, so that the hidden units' outputs are quarters: sigma(ln 3) = 3/4, sigma(-ln 3) = 1/4, sigma(0) = 1/2.
LN3 = math.log(3)
TWO_LAYERS = NetworkSpec(2, 1, (2,), activation="sigmoid", loss="squared_error", dtype="float64")
#                    W1: input 1 to (h1, h2), input 2 to (h1, h2)   b1        W2          b2
PARAMETERS = np.array([LN3, 0.0, 0.0, -LN3, 0.0, 0.0, 2.0, 4.0, -1.0])


def gradient_of(features, targets, parameters=PARAMETERS, spec=TWO_LAYERS):
    network, gradient = Network(spec, len(features)), np.empty_like(parameters)
    loss = network.loss_and_gradient(parameters, gradient, np.array(features), np.array(targets))
    return loss, gradient


def test_two_layer_perceptron_unit_by_unit():
    """One row x = (1, 1), t = 1, forward and backward unit by unit:

    net1 = ln 3, h1 = 3/4;  net2 = -ln 3, h2 = 1/4;  o = 2 * 3/4 + 4 * 1/4 - 1 = 3/2;  L = 1/2 (1/2)^2 = 1/8
    delta_o = o - t = 1/2
    dL/dW2 = delta_o h = (3/8, 1/8);  dL/db2 = 1/2
    delta_h1 = delta_o 2 * 3/16 = 3/16;  delta_h2 = delta_o 4 * 3/16 = 3/8
    dL/dW1 = delta_h x: (3/16, 3/8) from each input;  dL/db1 = (3/16, 3/8)
    """
    loss, gradient = gradient_of([[1.0, 1.0]], [[1.0]])
    assert loss == pytest.approx(1 / 8, rel=1e-13)
    expected = [3 / 16, 3 / 8, 3 / 16, 3 / 8, 3 / 16, 3 / 8, 3 / 8, 1 / 8, 1 / 2]
    np.testing.assert_allclose(gradient, expected, rtol=1e-13)


def test_two_layer_perceptron_for_a_minibatch_at_once():
    """Rows (1, 1), (1, 0), (0, 0) with targets 1, 2, 2 as matrices:

    H = [[3/4, 1/4], [3/4, 1/2], [1/2, 1/2]];  o = (3/2, 5/2, 2);  delta_o = (1/2, 1/2, 0)
    dL/dW2 = H^T delta_o = (3/4, 3/8);  dL/db2 = 1
    Delta_h = delta_o W2^T * H (1 - H) = [[3/16, 3/8], [3/16, 1/2], [0, 0]]
    dL/dW1 = X^T Delta_h = [[3/8, 7/8], [3/16, 3/8]];  dL/db1 = (3/8, 7/8)
    """
    loss, gradient = gradient_of([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]], [[1.0], [2.0], [2.0]])
    assert loss == pytest.approx(1 / 8 + 1 / 8, rel=1e-13)
    expected = [3 / 8, 7 / 8, 3 / 16, 3 / 8, 3 / 8, 7 / 8, 3 / 4, 3 / 8, 1.0]
    np.testing.assert_allclose(gradient, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_scalar_loops_and_matrices_agree(seed):
    """The lecture's loops, one multiplication at a time, against the engine on the whole minibatch."""
    rng = np.random.default_rng(seed)
    spec = NetworkSpec(3, 2, (4,), activation="sigmoid", loss="squared_error", dtype="float64")
    parameters, x, t = rng.normal(size=4 * 4 + 5 * 2), rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    network = Network(spec, 5)
    p = network.layout.views(parameters)
    w1, b1, w2, b2 = (p[name].tolist() for name in ("layer1.weights", "layer1.bias", "layer2.weights", "layer2.bias"))
    expected = np.zeros_like(parameters)
    g = network.layout.views(expected)
    total = 0.0
    for row in range(5):
        h = [1 / (1 + math.exp(-(b1[j] + sum(x[row, i] * w1[i][j] for i in range(3))))) for j in range(4)]
        o = [b2[k] + sum(h[j] * w2[j][k] for j in range(4)) for k in range(2)]
        delta_o = [o[k] - t[row, k] for k in range(2)]
        delta_h = [sum(delta_o[k] * w2[j][k] for k in range(2)) * h[j] * (1 - h[j]) for j in range(4)]
        total += sum(d * d / 2 for d in delta_o)
        for k in range(2):
            g["layer2.bias"][k] += delta_o[k]
            for j in range(4):
                g["layer2.weights"][j, k] += delta_o[k] * h[j]
        for j in range(4):
            g["layer1.bias"][j] += delta_h[j]
            for i in range(3):
                g["layer1.weights"][i, j] += delta_h[j] * x[row, i]
    loss, gradient = gradient_of(x, t, parameters, spec)
    assert loss == pytest.approx(total, rel=1e-13)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-14)
