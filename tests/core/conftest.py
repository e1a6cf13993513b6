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


class Runner:
    """A graph planned once in float64, to be run on any arrays."""

    def __init__(self, graph: Graph, output: str, rows: int) -> None:
        self._graph, self._output = graph, output
        self._plan = Plan(graph, rows, Storage(np.float64), (), output)

    def value(self, arrays: Arrays) -> Any:
        """The value of the output."""
        for name, place in (self._plan.inputs | self._plan.parameters).items():
            place.bind(np.asarray(arrays[name], place.dtype))
        return self._plan.forward(self._output).copy()

    def gradients(self, arrays: Arrays) -> tuple[Any, dict[str, Any]]:
        """The value, and the gradient of the sum of its elements by each parameter."""
        gradients = {
            parameter.name: np.full_like(arrays[parameter.name], np.nan) for parameter in self._graph.parameters
        }
        self._plan.bind_gradients(gradients)
        for _ in range(2):  # a run leaves nothing behind that the next one would stumble over
            value = self.value(arrays)
            self._plan.backward()
        return value, gradients


def run_graph(graph: Graph, arrays: Arrays, output: str, rows: int = 1) -> tuple[Any, dict[str, Any]]:
    """The value of `output` and the gradient of the sum of its elements by each parameter, in float64."""
    return Runner(graph, output, rows).gradients(arrays)


def relative_error(graph: Graph, arrays: Arrays, output: str, rows: int = 1, least: float = 1e-8) -> float:
    """The largest difference between gradient and central differences, relative to the largest element of either.

    Elements count as `least` at least, and as more by as much as the values are larger than 1: where paths cancel,
    differences of values near 1 are noise of 1e-11.
    """
    runner = Runner(graph, output, rows)
    _, gradients = runner.gradients(arrays)
    worst, size = 0.0, 1.0
    for name, gradient in gradients.items():
        differences = np.empty_like(gradient)
        for at in np.ndindex(gradient.shape):
            sums = []
            for shift in (STEP, -STEP):
                shifted = arrays[name].copy()
                shifted[at] += shift
                sums.append(runner.value({**arrays, name: shifted}).sum())
            differences[at], size = (sums[0] - sums[1]) / (2 * STEP), max(size, abs(sums[0]))
        scale = max(np.abs(gradient).max(), np.abs(differences).max(), least * size)
        worst = max(worst, float(np.abs(gradient - differences).max() / scale))
    return worst


@pytest.fixture(scope="session")
def run() -> Callable[..., tuple[Any, dict[str, Any]]]:
    return run_graph


@pytest.fixture(scope="session")
def gradient_error() -> Callable[..., float]:
    return relative_error
