"""The geometric view: a loss surface over two weights, and the paths that gradient descent takes down it.

Usage: python examples/surface.py [--steps N] [--plot FILE.png]

One logistic unit, o = sigma(w x + b), learns L = 1/2 (o - t)^2 of some rows from one starting point in four ways. The
gradient is at right angles to the contour lines; minibatches of one stagger about the same way; momentum overshoots.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from descent import Array

from core.activations import Sigmoid
from core.graph import Graph, Input, Node, Parameter
from core.losses import SquaredError
from core.operations import Affine, WeightedSum
from core.optimizers import OptimizerSpec, make_optimizer
from core.plan import Plan
from core.storage import ROWS, Storage

X = np.linspace(-2, 3, 24)[:, None]
T = (X > 0.7).astype(np.float64)  # a threshold: w and b shall grow in proportion
START = np.array([-2.0, 3.0])
WAYS = {
    "all rows": (24, OptimizerSpec("sgd", 4.0)),
    "minibatches of 4": (4, OptimizerSpec("sgd", 4.0)),
    "minibatches of 1": (1, OptimizerSpec("sgd", 4.0)),
    "all rows, momentum": (24, OptimizerSpec("sgd", 1.0, momentum=0.9)),
}


class Unit:
    """The logistic unit as a graph of its own, for minibatches of `rows`: the mean loss and its gradient."""

    def __init__(self, rows: int) -> None:
        graph = Graph(
            Input("x", (ROWS, 1)),
            Parameter("w", (1, 1)),
            Parameter("b", (1,)),
            Node("net", Affine(), "x", "w", "b"),
            Node("o", Sigmoid(), "net"),
            Input("t", (ROWS, 1)),
            Node("losses", SquaredError(), "o", "t"),
            Input("weights", (ROWS,)),
            Node("loss", WeightedSum(), "losses", "weights"),
        )
        self._plan = Plan(graph, rows, Storage("float64"), (), "loss")
        self._plan.inputs["weights"].bind(np.full(rows, 1 / rows))
        self.gradient = np.empty(2)
        self._plan.bind_gradients({"w": self.gradient[:1, None], "b": self.gradient[1:]})

    def loss(self, parameters: Array, rows: Array) -> float:
        """The mean loss of `rows` at `parameters` (w, b); its gradient is then in `gradient`."""
        self._plan.inputs["x"].bind(X[rows])
        self._plan.inputs["t"].bind(T[rows])
        self._plan.bind_parameters({"w": parameters[:1, None], "b": parameters[1:]})
        loss = float(self._plan.forward("loss"))
        self._plan.backward()
        return loss


def descend(batch: int, optimizer_spec: OptimizerSpec, steps: int) -> Array:
    """The points (w, b) of the way, (steps + 1, 2)."""
    rng, unit, optimizer = np.random.default_rng(0), Unit(batch), make_optimizer(optimizer_spec)
    path, state = [START], [np.zeros(2) for _ in range(optimizer.state_vectors)]
    for step in range(1, steps + 1):
        unit.loss(path[-1], rng.permutation(len(X))[:batch])
        after, after_state = np.empty(2), [np.empty(2) for _ in state]
        optimizer.update(step, optimizer_spec.learning_rate, path[-1], unit.gradient, state, after, after_state)
        path, state = [*path, after], after_state
    return np.array(path)


def plot(paths: dict[str, Array], path: Path) -> None:
    """The contour lines of the full loss, and each way over them."""
    from matplotlib.figure import Figure

    unit, every = Unit(len(X)), np.arange(len(X))
    w, b = np.linspace(-3, 9, 81), np.linspace(-7, 5, 81)
    surface = np.array([[unit.loss(np.array([i, j]), every) for i in w] for j in b])
    figure = Figure(figsize=(8.5, 8), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(2, 2, sharex=True, sharey=True).flat, paths.items(), strict=True):
        axes.contour(w, b, surface, 24, cmap="Greys_r", linewidths=0.7)
        axes.plot(*points.T, color="C3", marker=".", markersize=4, linewidth=1)
        axes.plot(*points[0], color="black", marker="o")
        axes.set(title=name, xlabel="w", ylabel="b", xlim=w[[0, -1]], ylim=b[[0, -1]], aspect="equal")
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> int:
    """Descend in every way, and print the loss before and after."""
    parser = argparse.ArgumentParser(description="Gradient descent over a loss surface.")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args(arguments)
    paths = {name: descend(batch, spec, options.steps) for name, (batch, spec) in WAYS.items()}
    unit, every = Unit(len(X)), np.arange(len(X))
    for name, points in paths.items():
        first, last = unit.loss(points[0], every), unit.loss(points[-1], every)
        sys.stdout.write(
            f"{name:20} loss {first:.4f} -> {last:.4f} at w = {points[-1, 0]:.2f}, b = {points[-1, 1]:.2f}\n"
        )
    if options.plot:
        plot(paths, options.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
