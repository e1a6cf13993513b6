"""Networks: from a specification to a planned graph that computes loss and gradient, predictions and metrics."""

import itertools
from dataclasses import dataclass
from typing import Any

from .specification import Specification, require_choice, require_whole

ACTIVATIONS = ("identity", "sigmoid", "tanh", "relu")
INITIALIZERS = ("auto", "glorot", "he")
LOSSES = ("cross_entropy", "squared_error")


@dataclass(frozen=True)
class NetworkSpec(Specification):
    """A perceptron: `inputs` numbers, hidden layers of `hidden` units with one activation, `outputs` linear units."""

    inputs: int
    outputs: int
    hidden: tuple[int, ...]
    activation: str = "relu"
    initializer: str = "auto"
    loss: str = "cross_entropy"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        require_whole("inputs", self.inputs, 1)
        require_whole("outputs", self.outputs, 1)
        for units in self.hidden:
            require_whole("hidden", units, 1)
        require_choice("activation", self.activation, ACTIVATIONS)
        require_choice("initializer", self.initializer, INITIALIZERS)
        require_choice("loss", self.loss, LOSSES)
        require_choice("dtype", self.dtype, ("float32", "float64"))

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(inputs, units) of each layer, the output layer last."""
        widths = (self.inputs, *self.hidden, self.outputs)
        return list(itertools.pairwise(widths))


def parameter_count(spec: NetworkSpec) -> int:
    """P, exactly, without building anything."""
    return sum((inputs + 1) * units for inputs, units in spec.layers)


def summary(spec: NetworkSpec) -> list[dict[str, Any]]:
    """One row a layer: name, shape of its weights, parameters, FLOPs a row of one training step.

    FLOPs are 6 a weight (2 forward, 4 backward), in the first layer 4: its input needs no error signal.
    """
    return [
        {
            "name": f"layer{number}",
            "shape": [inputs, units],
            "parameters": (inputs + 1) * units,
            "flops": (4 if number == 1 else 6) * inputs * units,
        }
        for number, (inputs, units) in enumerate(spec.layers, start=1)
    ]
