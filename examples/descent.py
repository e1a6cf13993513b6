"""What the examples share: gradient descent on one network, in one process, written out.

The service does the same over many shards and processes (worker/); here is the loop itself.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.network import Network, NetworkSpec, initial_parameters
from core.optimizers import OptimizerSpec, make_optimizer

Array = NDArray[Any]


class Descent:
    """A network, its parameters, and what its optimizer remembers. `rows`: the most rows of one minibatch."""

    def __init__(self, spec: NetworkSpec, optimizer: OptimizerSpec, rows: int, seed: int = 0) -> None:
        self.network = Network(spec, rows)
        self.parameters = initial_parameters(spec, seed)
        self.steps = 0
        self._rate, self._optimizer = optimizer.learning_rate, make_optimizer(optimizer)
        self._gradient, self._spare = np.empty_like(self.parameters), np.empty_like(self.parameters)
        self._state = [np.zeros_like(self.parameters) for _ in range(self._optimizer.state_vectors)]
        self._spare_state = [np.zeros_like(vector) for vector in self._state]

    def step(self, features: Array, targets: Array, scale: float = 1.0) -> float:
        """One update on one minibatch, with `scale` times the learning rate; the minibatch's mean loss before it."""
        self.steps += 1
        loss = self.network.loss_and_gradient(self.parameters, self._gradient, features, targets)
        self._gradient /= len(features)
        self._optimizer.update(
            self.steps, scale * self._rate, self.parameters, self._gradient, self._state, self._spare, self._spare_state
        )
        # An update is out of place: what it read is the spare of the next one.
        self.parameters, self._spare = self._spare, self.parameters
        self._state, self._spare_state = self._spare_state, self._state
        return loss / len(features)

    def epochs(
        self, features: Array, targets: Array, epochs: int, batch: int, scale: Callable[[float], float] = lambda _: 1.0
    ) -> float:
        """`epochs` passes over all rows in a fresh order each; `scale` of the part done. The last epoch's mean loss."""
        rng, mean = np.random.default_rng(self.steps), 0.0
        for epoch in range(epochs):
            order = rng.permutation(len(features))
            parts = [order[start : start + batch] for start in range(0, len(order), batch)]
            losses = [self.step(features[rows], targets[rows], scale(epoch / epochs)) * len(rows) for rows in parts]
            mean = sum(losses) / len(features)
        return mean

    def predict(self, features: Array) -> Array:
        """The network's outputs, (n, outputs)."""
        return self.network.predict(self.parameters, features)
