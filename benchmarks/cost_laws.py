"""What a step costs, measured: linear in layers, quadratic in width, and backward twice as much as forward."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.contenders import Array, Case
from benchmarks.race import Options, race
from benchmarks.rows import Row

BATCH, WIDTH, LAYERS = 128, 256, 3
DEPTHS = (1, 2, 4, 6, 8, 10, 12)  # layers of WIDTH
WIDTHS = (64, 128, 256, 384, 512, 768, 1024)  # of LAYERS layers
SQUARE_DEPTH = 8


def square(width: int, layers: int) -> Case:
    """A network whose every layer has `width` inputs and units."""
    return Case((width,) * (layers + 1), BATCH)


def step_microseconds(cases: Sequence[Case], options: Options) -> Array:
    """The median time of one step of each case."""
    results = race([("ours", case) for case in cases], options)
    return np.array([1e6 * case.batch / result.rate for case, result in zip(cases, results, strict=True)])


def fit(x: Array, times: Array, degree: int) -> tuple[Array, float]:
    """The polynomial of least relative errors through the measured times, and R^2."""
    coefficients = np.polyfit(x, times, degree, w=1 / times)
    rest = times - np.polyval(coefficients, x)
    return coefficients, float(1 - rest.var() / times.var())


def run(options: Options, plot: Path) -> list[Row]:
    """The rows of the two laws and of backward : forward; the fits are drawn into the file `plot`."""
    depths, widths = np.array(DEPTHS, float), np.array(WIDTHS, float)
    by_depth = step_microseconds([square(WIDTH, layers) for layers in DEPTHS], options)
    by_width = step_microseconds([square(width, LAYERS) for width in WIDTHS], options)
    line, straight = fit(depths, by_depth, 1)
    parabola, quadratic = fit(widths, by_width, 2)
    draw(
        plot,
        [(depths, by_depth, line, "layers of 256 units"), (widths, by_width, parabola, "units in each of 3 layers")],
    )
    per_layer = f"{line[0]:.0f} us a layer of {WIDTH}, {line[1]:+.0f} us"
    per_unit = f"{parabola[0] * 1e3:.2f} ns n^2 {parabola[1]:+.2f} us n {parabola[2]:+.0f} us"
    return [
        Row("time linear in layers", per_layer, straight, 1.0, "R2", straight, 0.99),
        Row("time quadratic in width", per_unit, quadratic, 1.0, "R2", quadratic, 0.99),
        backward_to_forward(options),
    ]


def backward_to_forward(options: Options) -> Row:
    """How many forward passes a backward pass costs. By operations it is (2 L - 1) / L for L equal layers."""
    case = square(WIDTH, SQUARE_DEPTH)
    forward, both = race([("ours forward", case), ("ours gradient", case)], options)
    ratio = forward.ratio(both) - 1
    times = 1e6 * case.batch / forward.rate, 1e6 * case.batch / both.rate
    name = f"{SQUARE_DEPTH} layers of {WIDTH}, batch {BATCH}; by operations {(2 * SQUARE_DEPTH - 1) / SQUARE_DEPTH:.2f}"
    return Row(
        "backward : forward, the textbook's 2", name, times[1] - times[0], times[0], "us", ratio, 2.2, ceiling=True
    )


def draw(path: Path, panels: Sequence[tuple[Array, Array, Array, str]]) -> None:
    """Measured times and the polynomials through them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (x, times, coefficients, label) in zip(figure.subplots(1, 2), panels, strict=True):
        dense = np.linspace(0, x.max(), 200)
        axes.plot(dense, np.polyval(coefficients, dense), color="0.6", label=f"fitted, degree {len(coefficients) - 1}")
        axes.plot(x, times, "o", color="C3", label="measured")
        axes.set(xlabel=label, ylabel=f"us a step, batch {BATCH}", xlim=(0, None), ylim=(0, None))
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
