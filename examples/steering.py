"""The lecture's network that steers a car: a 30 x 32 retina, 5 hidden units, 30 steering directions.

Usage: python examples/steering.py [--epochs N] [--metres N] [--plot FILE.png]

After ALVINN (D. Pomerleau, "ALVINN: An Autonomous Land Vehicle in a Neural Network", NIPS 1988). The road is drawn: a
strip of constant width seen in perspective, brighter or darker than the land beside it, under noise. The network
learns from single images which way to steer; then it drives along a winding road it has never seen, image by image.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from descent import Array, Descent

from core.network import NetworkSpec
from core.optimizers import OptimizerSpec

ROWS, COLUMNS, DIRECTIONS = 30, 32, 30
ROAD_WIDTH_M, LOOK_AHEAD_M, STEP_M = 4.0, 12.0, 0.5
SHARPEST = 0.12  # 1/m: the curvature that the outermost direction steers
STEERING = np.linspace(-SHARPEST, SHARPEST, DIRECTIONS)
DISTANCES_M = np.geomspace(30.0, 4.0, ROWS)  # of the road under each row of the retina, the top row first


@dataclass(frozen=True)
class View:
    """The road as the car sees it: how far its middle lies to the left at each row's distance, in metres."""

    offsets: Array

    def draw(self, rng: np.random.Generator) -> Array:
        """The retina, float32 (ROWS * COLUMNS,), about zero mean; light, contrast and noise are `rng`'s."""
        half_field = DISTANCES_M * 0.8  # metres that half the picture's width covers at each distance
        across = np.linspace(-1.0, 1.0, COLUMNS)[None, :] * half_field[:, None]
        edge = np.abs(across + self.offsets[:, None]) - ROAD_WIDTH_M / 2
        road = 1.0 / (1.0 + np.exp(np.clip(edge / 0.25, -40, 40)))
        contrast = rng.uniform(0.6, 1.4)
        image = contrast * road + rng.uniform(-0.2, 0.2) + rng.normal(0, 0.15, road.shape)
        return np.float32(image - image.mean()).ravel()


def steering_towards(offset: float, distance: float) -> float:
    """Curvature (1/m, left positive) of the circle through the car and a point ahead: pure pursuit, 2 y / L^2."""
    return float(np.clip(2 * offset / (distance**2 + offset**2), -SHARPEST, SHARPEST))


def bump(curvature: float) -> Array:
    """The target: a Gaussian hill of activity about the right direction, as ALVINN's teacher gave it."""
    hill: Array = np.exp(-(((STEERING - curvature) / (2 * (STEERING[1] - STEERING[0]))) ** 2))
    return hill.astype(np.float32)


def direction(activity: Array) -> float:
    """The curvature that an output means: the centre of mass of the hill about its highest unit."""
    top = int(activity.argmax())
    near = slice(max(0, top - 3), top + 4)
    mass = np.clip(activity[near], 1e-6, None)
    return float((mass * STEERING[near]).sum() / mass.sum())


def lesson(count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """`count` images of a car placed askew on roads of any curvature, and where it should steer."""
    images, targets = [], []
    for _ in range(count):
        curvature, aside, heading = rng.uniform(-0.05, 0.05), rng.uniform(-1.8, 1.8), rng.uniform(-0.25, 0.25)
        offsets = aside - DISTANCES_M * np.tan(heading) + curvature * DISTANCES_M**2 / 2
        goal = aside - LOOK_AHEAD_M * np.tan(heading) + curvature * LOOK_AHEAD_M**2 / 2
        images.append(View(offsets).draw(rng))
        targets.append(bump(steering_towards(goal, LOOK_AHEAD_M)))
    return np.stack(images), np.stack(targets)


def train(epochs: int, seed: int = 0) -> Descent:
    """The network after `epochs` over 4,000 images, at a rate that falls to 0."""
    images, targets = lesson(4000, np.random.default_rng(seed))
    spec = NetworkSpec(ROWS * COLUMNS, DIRECTIONS, (5,), activation="sigmoid", loss="squared_error")
    descent = Descent(spec, OptimizerSpec("adamw", learning_rate=0.01), rows=100, seed=seed)
    descent.epochs(images, targets, epochs, 100, lambda done: 1 - done)
    return descent


def road(metres: int) -> Array:
    """A winding road unlike the lessons': points every STEP_M, (n, 2), whose curvature changes all the time."""
    s = np.arange(0, metres, STEP_M)
    curvature = 0.03 * np.sin(s / 23) + 0.015 * np.sin(s / 9 + 1)
    heading = np.cumsum(curvature) * STEP_M
    return np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1) * STEP_M, axis=0)


@dataclass(frozen=True)
class Drive:
    """Where the car was, (n, 2); what it saw, (n, ROWS * COLUMNS), and put out, (n, DIRECTIONS), on the way there."""

    positions: Array
    images: Array
    activities: Array

    def aside(self, path: Array) -> Array:
        """How far each position is from the middle of the road `path`, in metres."""
        return np.array([np.sqrt(((path - position) ** 2).sum(axis=1).min()) for position in self.positions])


def drive(driver: Descent, path: Array, seed: int = 1) -> Drive:
    """A drive steered by the network alone, until the end of the road is in sight or the car has left the road."""
    rng = np.random.default_rng(seed)
    position, heading = path[0].copy(), float(np.arctan2(*(path[1] - path[0])[::-1]))
    positions: list[Array] = []
    images: list[Array] = []
    activities: list[Array] = []
    while True:
        ahead = np.array([np.cos(heading), np.sin(heading)])
        left = np.array([-ahead[1], ahead[0]])
        distances = np.sqrt(((path - position) ** 2).sum(axis=1))
        nearest = int(distances.argmin())
        seen = path[nearest : nearest + int(60 / STEP_M)] - position
        forward = seen @ ahead
        if forward[-1] < DISTANCES_M.max() or distances[nearest] > ROAD_WIDTH_M:
            return Drive(np.array(positions), np.array(images), np.array(activities))
        images.append(View(np.interp(DISTANCES_M, forward, seen @ left)).draw(rng))
        activities.append(driver.predict(images[-1][None])[0])
        heading += direction(activities[-1]) * STEP_M
        position = position + STEP_M * np.array([np.cos(heading), np.sin(heading)])
        positions.append(position)


def plot(driver: Descent, driven: Drive, path: Array, file: Path) -> None:
    """The drive from above, what the car saw and did at three places, and what each hidden unit looks for."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    grid = figure.add_gridspec(3, 6)
    above, along = figure.add_subplot(grid[:2, :3]), figure.add_subplot(grid[0, 3:])
    above.plot(*path.T, color="0.8", linewidth=6, label="road")
    above.plot(*driven.positions.T, color="C3", linewidth=1, label="car")
    above.set(aspect="equal", xlabel="m", ylabel="m", title="from above")
    above.legend()
    along.plot(np.arange(len(driven.positions)) * STEP_M, driven.aside(path), color="C3")
    along.axhline(ROAD_WIDTH_M / 2, color="0.5", linestyle=":", label="edge of the road")
    along.set(ylim=(0, ROAD_WIDTH_M / 2 * 1.1), xlabel="m driven", ylabel="m from the middle", title="how well")
    along.legend()
    for place, step in enumerate(np.linspace(0, len(driven.positions) - 1, 3).astype(int)):
        axes = figure.add_subplot(grid[1, 3 + place])
        axes.imshow(driven.images[step].reshape(ROWS, COLUMNS), cmap="gray")
        # Unit 0 steers furthest to the right.
        axes.plot(np.linspace(COLUMNS - 1, 0, DIRECTIONS), ROWS - 4 - 12 * driven.activities[step], color="C3")
        axes.set(title=f"seen at {step * STEP_M:.0f} m", xticks=[], yticks=[])
    weights = driver.network.layout.views(driver.parameters)["layer1.weights"]
    below = grid[2, :].subgridspec(1, len(weights.T))
    for unit, row in enumerate(weights.T):
        axes = figure.add_subplot(below[unit])
        axes.imshow(row.reshape(ROWS, COLUMNS), cmap="RdBu_r", vmin=-abs(row).max(), vmax=abs(row).max())
        axes.set(title=f"weights of unit {unit + 1}", xticks=[], yticks=[])
    figure.savefig(file, dpi=120)


def main(arguments: list[str] | None = None) -> int:
    """Train, drive, and say how it went. Exit code 1 if the car left the road."""
    parser = argparse.ArgumentParser(description="A network learns to steer a car, and drives.")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--metres", type=int, default=600)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args(arguments)
    path, driver = road(options.metres), train(options.epochs)
    driven = drive(driver, path)
    aside = driven.aside(path)
    sys.stdout.write(
        f"drove {len(aside) * STEP_M:.0f} m on a road of {ROAD_WIDTH_M:g} m; from its middle: "
        f"{aside.mean():.2f} m on average, {aside.max():.2f} m at most\n"
    )
    if options.plot:
        plot(driver, driven, path, options.plot)
    return 0 if aside.max() < ROAD_WIDTH_M / 2 else 1


if __name__ == "__main__":
    raise SystemExit(main())
