"""The libraries that people use instead, in one process: PyTorch, JAX, scikit-learn. Each as its users write it."""

import itertools
import warnings
from typing import Any

import numpy as np

from benchmarks.contenders import RATE, Array, Contender


class Torch(Contender):
    """PyTorch, eager: Sequential, CrossEntropyLoss and SGD as in its tutorials."""

    fused = False

    def prepare(self) -> None:
        import torch

        torch.set_num_threads(self.case.threads)
        torch.manual_seed(0)
        activations = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh, "sigmoid": torch.nn.Sigmoid, "gelu": torch.nn.GELU}
        layers: list[Any] = []
        for inputs, units in itertools.pairwise(self.case.sizes):
            layers += [torch.nn.Linear(inputs, units), activations[self.case.activation]()]
        self.torch, self.network, self.loss = torch, torch.nn.Sequential(*layers[:-1]), torch.nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=RATE, fused=self.fused or None)
        self.x, self.y = torch.from_numpy(self.features), torch.from_numpy(self.targets)
        self.forward = self.forward_and_loss

    def forward_and_loss(self, x: Any, y: Any) -> Any:
        """The mean loss."""
        return self.loss(self.network(x), y)

    def next_rows(self) -> Any:
        rows = next(self._parts, None)
        if rows is None:
            self._parts = iter(self.torch.randperm(len(self.features)).split(self.case.batch))
            rows = next(self._parts)
        return rows

    def step(self, rows: Any) -> None:
        self.optimizer.zero_grad()
        self.forward(self.x[rows], self.y[rows]).backward()
        self.optimizer.step()


class TorchFused(Torch):
    """The same with the fused SGD, which the CPU has too."""

    fused = True


class TorchCompiled(Torch):
    """`torch.compile` of network and loss, with the fused SGD. Needs a C++ compiler."""

    fused = True

    def prepare(self) -> None:
        super().prepare()
        self.forward = self.torch.compile(self.forward_and_loss, dynamic=False)


class Jax(Contender):
    """JAX: one jitted function, gather to update, its parameters donated."""

    def prepare(self) -> None:
        import jax
        import jax.numpy as jnp

        keys = jax.random.split(jax.random.key(0), len(self.case.sizes))
        self.parameters = [
            (jax.random.normal(key, (inputs, units)) * np.sqrt(2 / inputs).astype(np.float32), jnp.zeros(units))
            for key, (inputs, units) in zip(keys, itertools.pairwise(self.case.sizes), strict=False)
        ]
        self.x, self.y = jnp.asarray(self.features), jnp.asarray(self.targets.astype(np.int32))
        activation = getattr(jax.nn, self.case.activation)

        def mean_loss(parameters: Any, x: Any, y: Any) -> Any:
            *hidden, last = parameters
            for w, b in hidden:
                x = activation(x @ w + b)
            logits = jax.nn.log_softmax(x @ last[0] + last[1])
            return -jnp.take_along_axis(logits, y[:, None], axis=1).mean()

        def step(parameters: Any, x: Any, y: Any, rows: Any) -> Any:
            gradient = jax.grad(mean_loss)(parameters, x[rows], y[rows])
            return jax.tree.map(lambda p, g: p - RATE * g, parameters, gradient)

        self.jitted, self.wait = jax.jit(step, donate_argnums=0), jax.block_until_ready

    def run(self, steps: int) -> int:
        examples = super().run(steps)
        self.wait(self.parameters)
        return examples

    def step(self, rows: Array) -> None:
        self.parameters = self.jitted(self.parameters, self.x, self.y, rows.astype(np.int32))


class ScikitLearn(Contender):
    """MLPClassifier; it takes whole epochs, however few steps are asked for."""

    def prepare(self) -> None:
        from sklearn.neural_network import MLPClassifier

        activation = {"sigmoid": "logistic"}.get(self.case.activation, self.case.activation)
        self.classifier = MLPClassifier(
            self.case.sizes[1:-1], activation=activation, solver="sgd", batch_size=self.case.batch,
            learning_rate_init=RATE, momentum=0, alpha=0, max_iter=1, warm_start=True, n_iter_no_change=1000,
        )  # fmt: skip

    def run(self, steps: int) -> int:
        epochs = max(1, round(steps * self.case.batch / len(self.features)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one epoch does not converge, and says so
            for _ in range(epochs):
                self.classifier.fit(self.features, self.targets)
        return epochs * len(self.features)


PEERS: dict[str, type[Contender]] = {
    "PyTorch": Torch,
    "PyTorch fused": TorchFused,
    "torch.compile": TorchCompiled,
    "JAX": Jax,
    "scikit-learn": ScikitLearn,
}
