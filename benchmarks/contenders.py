"""One training step by each contender: here the engine and the hand-written yardstick; the libraries are peers.py.

Every contender trains the same network on the same rows: float32, shuffled minibatches gathered from memory, forward,
backward, plain SGD. Each is written as its users would write it for speed, and takes the number of threads that it is
given. `Contender.run` is what is timed; it ends when the work is done, not when it is queued.
"""

import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from core.network import Network, NetworkSpec, initial_parameters
from core.optimizers import OptimizerSpec, make_optimizer
from worker.numerics import small_product
from worker.reduction import is_finite, sum_block

Array = NDArray[Any]
RATE = 0.1


@dataclass(frozen=True)
class Case:
    """A network by the units of its layers, input first; a minibatch; how many threads; which activation."""

    sizes: tuple[int, ...]
    batch: int
    threads: int = 1
    activation: str = "relu"

    @property
    def flops(self) -> int:
        """Floating-point operations an example: 6 a weight; 4 in the first layer, whose input needs no signal."""
        pairs = list(itertools.pairwise(self.sizes))
        return 6 * sum(a * b for a, b in pairs) - 2 * pairs[0][0] * pairs[0][1]

    @property
    def name(self) -> str:
        """What the tables call it."""
        network = "-".join(map(str, self.sizes)) + ("" if self.activation == "relu" else f" {self.activation}")
        return f"{network}, batch {self.batch}, {self.threads} thread{'s' if self.threads > 1 else ''}"


class Contender(ABC):
    """Trains on `features` float32 (n, inputs) and `targets` int64 (n,). n is a multiple of the batch."""

    in_other_processes: ClassVar[bool] = False  # it computes there, so that this one's processor time tells nothing

    def __init__(self, case: Case, features: Array, targets: Array) -> None:
        self.case, self.features, self.targets = case, features, targets
        self._rng = np.random.default_rng(2)
        self._parts: Iterator[Array] = iter(())
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Build the network; raises ImportError where the library is not installed."""

    def run(self, steps: int) -> int:
        """Take `steps` steps; the number of examples that they had."""
        for _ in range(steps):
            self.step(self.next_rows())
        return steps * self.case.batch

    def close(self) -> None:
        """End what `prepare` started outside this process."""
        return None

    def step(self, rows: Array) -> None:
        """One step on the rows of these numbers."""
        raise NotImplementedError

    def next_rows(self) -> Array:
        """The next minibatch's row numbers, in a fresh order each epoch."""
        rows = next(self._parts, None)
        if rows is None:
            order = self._rng.permutation(len(self.features))
            self._parts = iter(order.reshape(-1, self.case.batch))
            rows = next(self._parts)
        return rows


class Yardstick(Contender):
    """The step written out by hand for ReLU: what NumPy gives without an engine."""

    def prepare(self) -> None:
        sizes, batch, rng = self.case.sizes, self.case.batch, np.random.default_rng(0)
        pairs = list(itertools.pairwise(sizes))
        self.depth = len(pairs)
        self.weights = [(rng.normal(size=pair) * np.sqrt(2 / pair[0])).astype(np.float32) for pair in pairs]
        self.biases = [np.zeros(n, np.float32) for n in sizes[1:]]
        self.outputs = [np.empty((batch, n), np.float32) for n in sizes]
        self.signals = [np.empty((batch, n), np.float32) for n in sizes]
        self.masks = [np.empty((batch, n), bool) for n in sizes]
        self.weight_gradients = [np.empty_like(w) for w in self.weights]
        self.bias_gradients = [np.empty_like(b) for b in self.biases]
        self.rows = np.arange(batch)

    def step(self, rows: Array) -> None:
        h, d, w, b, last = self.outputs, self.signals, self.weights, self.biases, self.depth - 1
        np.take(self.features, rows, axis=0, out=h[0], mode="clip")
        for k in range(self.depth):
            np.matmul(h[k], w[k], out=h[k + 1])
            h[k + 1] += b[k]
            if k < last:
                np.maximum(h[k + 1], 0, out=h[k + 1])
        z = h[-1]
        z -= z.max(1, keepdims=True)
        np.exp(z, out=z)
        z /= z.sum(1, keepdims=True)
        z[self.rows, self.targets[rows]] -= 1
        z *= 1 / self.case.batch
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


class Engine(Contender):
    """The general engine, updated out of place and block by block: the committed parameters stay whole.

    The next ones are written over the gradient, and the vectors change roles: two of them, not three, share the cache.
    """

    def prepare(self) -> None:
        case = self.case
        spec = NetworkSpec(case.sizes[0], case.sizes[-1], case.sizes[1:-1], case.activation)
        self.network = Network(spec, case.batch, small_product(case.threads))
        self.optimizer = make_optimizer(OptimizerSpec("sgd", RATE))
        self.now = initial_parameters(spec, 0)
        self.gradient = np.empty_like(self.now)
        self.batch_features = np.empty((case.batch, case.sizes[0]), np.float32)
        self.batch_targets = np.empty(case.batch, np.int32)
        self.targets = self.targets.astype(np.int32)

    def step(self, rows: Array) -> None:
        self.descend(rows, self.gradient)
        self.now, self.gradient = self.gradient, self.now

    def descend(self, rows: Array, after: Array) -> None:
        """Write the next parameters into `after`, block by block. The loss's derivative takes the rate in, as in
        worker.local_steps, so that the gradient need not be multiplied."""
        self.differentiate(rows, RATE / self.case.batch)
        for block in self.network.layout.blocks:
            self.optimizer.update(1, 1.0, self.now[block], self.gradient[block], (), after[block], ())

    def differentiate(self, rows: Array, scale: float = 1.0) -> None:
        """Gather the minibatch; the gradient of `scale` times its summed loss."""
        x, y = self.batch_features, self.batch_targets
        self.features.take(rows, 0, x, "clip")
        self.targets.take(rows, 0, y, "clip")
        self.network.loss_and_gradient(self.now, self.gradient, x, y, scale=scale)


class EngineInPlace(Engine):
    """The engine with its parameters updated in place, as the yardstick and the libraries do."""

    def step(self, rows: Array) -> None:
        self.descend(rows, self.now)


class EngineChecked(Engine):
    """The whole of the service's commit besides: sum over slots, norm, and nothing that is not finite."""

    def prepare(self) -> None:
        super().prepare()
        self.after, self.sum = np.empty_like(self.now), np.empty_like(self.now)

    def step(self, rows: Array) -> None:
        self.differentiate(rows)
        blocks, scale = self.network.layout.blocks, 1.0 / self.case.batch
        finite = np.isfinite(sum([sum_block([self.gradient[block]], self.sum[block]) for block in blocks]))
        for block in blocks:
            self.optimizer.update(1, RATE, self.now[block], self.sum[block], (), self.after[block], (), scale)
            finite &= is_finite(self.after[block])
        if not finite:
            raise FloatingPointError(self.case.name)
        self.now, self.after = self.after, self.now


class EngineForward(Engine):
    """The engine's forward pass alone, on the same gathered minibatches: what the backward pass is compared with."""

    def step(self, rows: Array) -> None:
        np.take(self.features, rows, axis=0, out=self.batch_features, mode="clip")
        self.network.predict(self.now, self.batch_features)


class EngineGradient(Engine):
    """Forward and backward without the update."""

    def step(self, rows: Array) -> None:
        self.differentiate(rows)


class Sgemm(Contender):
    """The machine's peak: a product of two 2048 x 2048 matrices counts as one step."""

    FLOPS = 2 * 2048**3

    def prepare(self) -> None:
        rng = np.random.default_rng(0)
        self.a, self.b = rng.random((2, 2048, 2048), np.float32)
        self.out = np.empty_like(self.a)

    def run(self, steps: int) -> int:
        for _ in range(steps):
            np.matmul(self.a, self.b, out=self.out)
        return steps


CONTENDERS: dict[str, type[Contender]] = {
    "ours": Engine,
    "ours in place": EngineInPlace,
    "ours checked": EngineChecked,
    "ours forward": EngineForward,
    "ours gradient": EngineGradient,
    "hand-written": Yardstick,
    "SGEMM": Sgemm,
}


def hold_to_threads(threads: int) -> None:
    """Before NumPy's BLAS or a library is asked for work: one thread is one core too, which is all that JAX heeds."""
    if threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
