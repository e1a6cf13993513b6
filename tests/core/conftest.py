"""One gradient checker for everything that has a derivative."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from core.graph import Graph
from core.plan import Plan
from core.storage import Storage

Arrays = Mapping[str, Any]
STEP = 1e-5


def run_graph(graph: Graph, arrays: Arrays, output: str, rows: int = 1) -> tuple[Any, dict[str, Any]]:
    """The value of `output` and the gradient of the sum of its elements by each parameter, in float64."""
    plan = Plan(graph, rows, Storage(np.float64), (), output)
    for name, place in (plan.inputs | plan.parameters).items():
        place.bind(np.asarray(arrays[name], place.dtype))
    gradients = {parameter.name: np.full_like(arrays[parameter.name], np.nan) for parameter in graph.parameters}
    plan.bind_gradients(gradients)
    for _ in range(2):  # a run leaves nothing behind that the next one would stumble over
        value = plan.forward(output).copy()
        plan.backward()
    return value, gradients


def relative_error(graph: Graph, arrays: Arrays, output: str, rows: int = 1) -> float:
    """The largest difference between gradient and central differences, relative to the largest element of either."""
    _, gradients = run_graph(graph, arrays, output, rows)
    worst = 0.0
    for name, gradient in gradients.items():
        differences = np.empty_like(gradient)
        for at in np.ndindex(gradient.shape):
            sums = []
            for shift in (STEP, -STEP):
                shifted = arrays[name].copy()
                shifted[at] += shift
                sums.append(run_graph(graph, {**arrays, name: shifted}, output, rows)[0].sum())
            differences[at] = (sums[0] - sums[1]) / (2 * STEP)
        scale = max(np.abs(gradient).max(), np.abs(differences).max(), 1e-8)
        worst = max(worst, float(np.abs(gradient - differences).max() / scale))
    return worst


@pytest.fixture
def run() -> Callable[..., tuple[Any, dict[str, Any]]]:
    return run_graph


@pytest.fixture
def gradient_error() -> Callable[..., float]:
    return relative_error
