"""One training step: the general graph engine beside the same step written out by hand for one network.

The contenders take turns, some tens of milliseconds each; a figure is the median over the turns. All gather a shuffled
minibatch, go forward and backward, and update by plain SGD, in float32 on one BLAS thread. The yardstick is as plain as
NumPy allows, and as fast as its author could make it without a trick that a reader would stop at.
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

ROUNDS = 60
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
    """The same step by the general engine. Plain SGD may update in place, as the yardstick does."""

    def __init__(self, sizes: tuple[int, ...], batch: int, features: Any, targets: Any) -> None:
        spec = NetworkSpec(sizes[0], sizes[-1], sizes[1:-1])
        self.features, self.targets, self.batch = features, targets.astype(np.int32), batch
        self.network = Network(spec, batch)
        self.optimizer = make_optimizer(OptimizerSpec("sgd", RATE))
        self.now = self.after = initial_parameters(spec, 0)
        self.gradient = np.empty_like(self.now)
        self.batch_features = np.empty((batch, sizes[0]), np.float32)
        self.batch_targets = np.empty(batch, np.int32)

    def step(self, index: Any) -> None:
        """One step on the rows `index`."""
        np.take(self.features, index, axis=0, out=self.batch_features, mode="clip")
        np.take(self.targets, index, out=self.batch_targets, mode="clip")
        self.network.loss_and_gradient(self.now, self.gradient, self.batch_features, self.batch_targets)
        rate = RATE / self.batch  # the gradient is that of the rows' sum
        self.optimizer.update(1, rate, self.now, self.gradient, (), self.after, ())
        self.now, self.after = self.after, self.now


class CommittingEngine(Engine):
    """The engine as the service runs it: the committed parameters stay whole while the next ones are written."""

    def __init__(self, sizes: tuple[int, ...], batch: int, features: Any, targets: Any) -> None:
        super().__init__(sizes, batch, features, targets)
        self.after = np.empty_like(self.now)


def alternate(contenders: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """The median seconds of each over `rounds` rounds, in which they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name in sorted(contenders, reverse=turn % 2 == 1):  # what runs before leaves its traces in the caches
            start = time.perf_counter()
            contenders[name]()
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def some_steps(contender: Yardstick | Engine, parts: list[Any]) -> Callable[[], None]:
    """A run over the minibatches `parts`."""

    def steps() -> None:
        for part in parts:
            contender.step(part)

    return steps


def run() -> list[dict[str, Any]]:
    """One row a case and way to update, as `make bench` reports it."""
    results = []
    for sizes, batch in CASES:
        rng = np.random.default_rng(1)
        count = max(2048, batch)
        features = np.maximum(rng.normal(size=(4 * count, sizes[0])), 0).astype(np.float32)  # half zeros, like images
        targets = rng.integers(0, sizes[-1], 4 * count)
        parts = np.split(rng.permutation(4 * count)[:count], count // batch)
        kinds = {"peer": Yardstick, "in place": Engine, "out of place": CommittingEngine}
        with threadpool_limits(1, "blas"):
            contenders = {
                name: some_steps(kind(sizes, batch, features, targets), parts) for name, kind in kinds.items()
            }
            seconds = alternate(contenders, ROUNDS if sizes[1] < 1000 else ROUNDS // 4)
        rates = {name: count / taken for name, taken in seconds.items()}
        for name in ("in place", "out of place"):
            ratio = rates[name] / rates["peer"]
            results.append(
                {
                    "goal": "engine step beside the hand-written one, 1 thread",
                    "case": f"{'-'.join(map(str, sizes))}, batch {batch}, updated {name}",
                    "ours": rates[name],
                    "peer": rates["peer"],
                    "unit": "examples/s",
                    "ratio": ratio,
                    "target": 1.0,
                    "met": ratio >= 1.0,
                }
            )
    return results
