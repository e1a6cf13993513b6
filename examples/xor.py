"""XOR: the smallest problem that one layer cannot solve and two can.

Usage: python examples/xor.py [--steps N] [--plot FILE.png]

The logistic unit draws one straight line; no line parts (0,0), (1,1) from (0,1), (1,0). Hidden units draw one each.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from descent import Descent

from core.network import NetworkSpec
from core.optimizers import OptimizerSpec

INPUTS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
TARGETS = np.array([0, 1, 1, 0], np.int32)
HIDDEN: tuple[tuple[int, ...], ...] = ((), (2,), (4,))


def train(hidden: tuple[int, ...], steps: int) -> Descent:
    """The network after `steps` of gradient descent on all four inputs at once."""
    spec = NetworkSpec(2, 2, hidden, activation="tanh")
    descent = Descent(spec, OptimizerSpec("sgd", learning_rate=0.5, momentum=0.9), rows=4)
    for _ in range(steps):
        descent.step(INPUTS, TARGETS)
    return descent


def plot(trained: dict[tuple[int, ...], Descent], path: Path) -> None:
    """The probability of "1" over the plane, for each network."""
    from matplotlib.figure import Figure

    ticks = np.linspace(-0.5, 1.5, 101, dtype=np.float32)
    plane = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    figure = Figure(figsize=(3.2 * len(trained) + 1, 3.2), layout="constrained")
    panels = figure.subplots(1, len(trained), sharey=True)
    for axes, (hidden, descent) in zip(panels, trained.items(), strict=True):
        chances = descent.predict(plane)[:, 1].reshape(101, 101)
        shade = axes.contourf(ticks, ticks, chances, np.linspace(0, 1, 11), cmap="RdBu_r")
        axes.scatter(*INPUTS[TARGETS == 0].T, color="white", edgecolor="black", label="0")
        axes.scatter(*INPUTS[TARGETS == 1].T, color="black", label="1")
        axes.set_title(f"hidden units: {', '.join(map(str, hidden)) or 'none'}")
        axes.set_aspect("equal")
    figure.colorbar(shade, ax=panels, label='probability of "1"')
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> int:
    """Print what each network makes of the four inputs. Exit code 1 if the last one gets one of them wrong."""
    parser = argparse.ArgumentParser(description="XOR, with and without hidden units.")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args(arguments)
    trained = {hidden: train(hidden, options.steps) for hidden in HIDDEN}
    for hidden, descent in trained.items():
        chances = descent.predict(INPUTS)[:, 1]
        right = int(((chances > 0.5) == TARGETS).sum())
        shown = "  ".join(f"{a:.0f} xor {b:.0f}: {p:.3f}" for (a, b), p in zip(INPUTS, chances, strict=True))
        sys.stdout.write(f"hidden {hidden!s:5}  {shown}   {right} of 4 right\n")
    if options.plot:
        plot(trained, options.plot)
    return 0 if right == len(INPUTS) else 1


if __name__ == "__main__":
    raise SystemExit(main())
