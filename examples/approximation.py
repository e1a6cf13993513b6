"""One hidden layer approximates any continuous function; a jump takes steep units, or a second layer.

Usage: python examples/approximation.py [--steps N] [--plot FILE.png]

Fits sin on [-pi, pi], a step, and a function with two jumps, and prints the mean and the largest error.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from descent import Array, Descent

from core.network import NetworkSpec
from core.optimizers import OptimizerSpec

POINTS = np.linspace(-np.pi, np.pi, 512, dtype=np.float64)[:, None]
FUNCTIONS: dict[str, tuple[Callable[[Array], Array], tuple[int, ...]]] = {
    "sin": (np.sin, (32,)),
    "step": (lambda x: (x > 0.3).astype(np.float64), (32,)),
    "two jumps": (lambda x: np.where(np.abs(x) < 1, np.cos(x), -0.5), (32, 32)),
}


def fit(function: Callable[[Array], Array], hidden: tuple[int, ...], steps: int) -> Array:
    """The fitted network's values at POINTS, (512,)."""
    spec = NetworkSpec(1, 1, hidden, activation="tanh", loss="squared_error", dtype="float64")
    descent = Descent(spec, OptimizerSpec("adam", learning_rate=0.03), rows=len(POINTS))
    descent.epochs(POINTS, function(POINTS), steps, len(POINTS), lambda done: (1 + np.cos(np.pi * done)) / 2)
    return descent.predict(POINTS)[:, 0]


def plot(fitted: dict[str, Array], path: Path) -> None:
    """Each function, and what its network makes of it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, len(fitted)), fitted.items(), strict=True):
        function, hidden = FUNCTIONS[name]
        axes.plot(POINTS, function(POINTS), color="0.7", linewidth=4, label="function")
        axes.plot(POINTS, values, color="C3", linewidth=1, label="network")
        axes.set_title(f"{name}, hidden units: {', '.join(map(str, hidden))}")
        axes.legend()
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> int:
    """Fit, and print the errors."""
    parser = argparse.ArgumentParser(description="Functions approximated by networks.")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args(arguments)
    fitted = {name: fit(function, hidden, options.steps) for name, (function, hidden) in FUNCTIONS.items()}
    for name, (function, hidden) in FUNCTIONS.items():
        error = np.abs(fitted[name] - function(POINTS)[:, 0])
        sys.stdout.write(f"{name:10} hidden {hidden!s:9} mean error {error.mean():.4f}, largest {error.max():.4f}\n")
    if options.plot:
        plot(fitted, options.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
