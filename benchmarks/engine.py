"""One training step: the general graph engine beside the same step written out by hand for one network.

The contenders take turns, an epoch each; a figure is the median over the turns. Both gather a shuffled minibatch, go
forward and backward, and update by plain SGD, in float32 on one BLAS thread. The yardstick is as plain as NumPy allows
and as fast as its author could make it without a trick that a reader would stop at.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from core.network import Network, NetworkSpec, initial_parameters
from core.optimizers import OptimizerSpec, make_optimizer

ROUNDS = 7
RATE = 0.1
CASES = [
    ((784, 256, 128, 10), 32),
    ((784, 256, 128, 10), 128),
    ((784, 256, 128, 10), 1024),
    ((784, 1024, 1024, 10), 256),
]


class Yardstick:
    """The hand-written step."""

    def __init__(self, sizes: tuple[int, ...], batch: int, features: Any, targets: Any) -> None:
        rng = np.random.default_rng(0)
        pairs = list(itertools.pairwise(sizes))
        self.features, self.targets, self.batch, self.depth = features, targets, batch, len(pairs)
        self.weights = [(rng.normal(size=pair) * np.sqrt(2 / pair[0])).astype(np.float32) for pair in pairs]
        self.biases = [np.zeros(n, np.float32) for n in sizes[1:]]
        self.outputs = [np.empty((batch, n), np.float32) for n in sizes]
        self.signals = [np.empty((batch, n), np.float32) for n in sizes]
        self.masks = [np.empty((batch, n), bool) for n in sizes]
        self.weight_gradients = [np.empty_like(w) for w in self.weights]
        self.bias_gradients = [np.empty_like(b) for b in self.biases]
        self.rows = np.arange(batch)

    def step(self, index: Any) -> None:
        """One step on the rows `index`."""
        h, d, w, b, last = self.outputs, self.signals, self.weights, self.biases, self.depth - 1
        np.take(self.features, index, axis=0, out=h[0], mode="clip")
        for k in range(self.depth):
            np.matmul(h[k], w[k], out=h[k + 1])
            h[k + 1] += b[k]
            if k < last:
                np.maximum(h[k + 1], 0, out=h[k + 1])
        z = h[-1]
        z -= z.max(1, keepdims=True)
        np.exp(z, out=z)
        z /= z.sum(1, keepdims=True)
        z[self.rows, self.targets[index]] -= 1
        z *= 1 / self.batch
        signal = z
        for k in range(last, -1, -1):
            np.matmul(h[k].T, signal, out=self.weight_gradients[k])
            np.sum(signal, axis=0, out=self.bias_gradients[k])
            if k:
                np.matmul(signal, w[k].T, out=d[k])
                np.greater(h[k], 0, out=self.masks[k])
                d[k] *= self.masks[k]
                signal = d[k]
        for parameter, gradient in zip([*w, *b], [*self.weight_gradients, *self.bias_gradients], strict=True):
            gradient *= RATE
            parameter -= gradient


class Engine:
    """The same step by the general engine: any graph, any optimizer, out of place by blocks."""

    def __init__(self, sizes: tuple[int, ...], batch: int, features: Any, targets: Any) -> None:
        spec = NetworkSpec(sizes[0], sizes[-1], sizes[1:-1])
        self.features, self.targets, self.batch = features, targets.astype(np.int32), batch
        self.network = Network(spec, batch)
        self.optimizer = make_optimizer(OptimizerSpec("sgd", RATE))
        self.parameters = [initial_parameters(spec, 0), np.empty(self.network.layout.size, np.float32)]
        self.gradient = np.empty(self.network.layout.size, np.float32)
        self.batch_features = np.empty((batch, sizes[0]), np.float32)
        self.batch_targets = np.empty(batch, np.int32)

    def step(self, index: Any) -> None:
        """One step on the rows `index`."""
        np.take(self.features, index, axis=0, out=self.batch_features, mode="clip")
        np.take(self.targets, index, out=self.batch_targets, mode="clip")
        now, after = self.parameters
        self.network.loss_and_gradient(now, self.gradient, self.batch_features, self.batch_targets)
        for block in self.network.layout.blocks:  # the gradient of a sum: the mean's, by the rate
            self.optimizer.update(1, RATE / self.batch, now[block], self.gradient[block], (), after[block], ())
        self.parameters.reverse()


def alternate(contenders: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """The median seconds of each over `rounds` rounds, in which they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def epoch(contender: Yardstick | Engine, order: Any) -> Callable[[], None]:
    """A run over all full minibatches of `order`."""
    parts = [
        order[start : start + contender.batch] for start in range(0, len(order) - contender.batch + 1, contender.batch)
    ]
    return lambda: [contender.step(part) for part in parts] and None


def run() -> list[dict[str, Any]]:
    """One row a case, as `make bench` reports it."""
    results = []
    for sizes, batch in CASES:
        rng = np.random.default_rng(1)
        count = 8192 if sizes[1] < 1000 else 2048
        features = np.maximum(rng.normal(size=(count, sizes[0])), 0).astype(np.float32)  # half zeros, like an image
        targets, order = rng.integers(0, sizes[-1], count), rng.permutation(count)
        contenders = {
            "ours": Engine(sizes, batch, features, targets),
            "peer": Yardstick(sizes, batch, features, targets),
        }
        with threadpool_limits(1, "blas"):
            seconds = alternate({name: epoch(c, order) for name, c in contenders.items()}, ROUNDS)
        rates = {name: count // batch * batch / taken for name, taken in seconds.items()}
        results.append(
            {
                "goal": "engine step beside the hand-written one, 1 thread",
                "case": f"{'-'.join(map(str, sizes))}, batch {batch}",
                "ours": rates["ours"],
                "peer": rates["peer"],
                "unit": "examples/s",
                "ratio": rates["ours"] / rates["peer"],
                "target": 1.0,
                "met": rates["ours"] >= rates["peer"],
            }
        )
    return results
