"""What a step looked like from inside, on request: read from the planned buffers that the step has left behind.

Small activations or signals that shrink from layer to layer, saturated units, updates that are large or tiny beside the
weights: how a network that does not learn is told from one that does. A look costs some passes over the buffers, and
allocates; steps that nobody looks at pay nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .network_spec import Block
from .parameters import ParameterLayout
from .plan import Plan

# Below this slope a unit passes on next to nothing of its error signal. A sigmoid's is 0.25 at most.
SATURATED = 0.05


@dataclass(frozen=True)
class LayerDiagnostics:
    """One layer in one step: means and standard deviations over its rows and units.

    Activations are what the layer passes on, after dropout; signals are dL/da at its net inputs a, for L the sum over
    the rows (NaN where none arrives). `saturation` is the part of the activations with a slope below 0.05: of a ReLU's
    units those that are off. It is 0 in a layer without an activation.
    """

    name: str
    activation_mean: float
    activation_spread: float
    saturation: float
    signal_mean: float
    signal_spread: float


@np.errstate(all="ignore")
def diagnose(plan: Plan, layers: Iterable[Block]) -> tuple[LayerDiagnostics, ...]:
    """Each of `layers` as the last run of `plan`, forward and backward, has left it."""
    found = []
    for block in layers:
        saturation = 0.0
        if block.activation is not None:
            saturation = float((np.abs(plan.slope(block.name)) < SATURATED).mean())
        signal = plan.signal(block.net)
        moments = (float("nan"), float("nan")) if signal is None else _moments(signal)
        found.append(LayerDiagnostics(block.parameters, *_moments(plan.value(block.value)), saturation, *moments))
    return tuple(found)


@np.errstate(all="ignore")
def update_ratios(layout: ParameterLayout, before: NDArray[Any], after: NDArray[Any]) -> dict[str, float]:
    """|after - before| / |before| for each named parameter of the vectors (P,); about 1e-3 is healthy.

    Infinite or NaN where a parameter was 0 throughout, as biases are before the first step.
    """
    old, new = layout.views(before), layout.views(after)
    return {name: float(_length(new[name] - old[name]) / _length(old[name])) for name in layout.names}


def series(layers: Iterable[LayerDiagnostics], ratios: Mapping[str, float] | None = None) -> dict[str, float]:
    """All of it as one number a name, for a tracker: layer1.saturation, layer1.weights.update_ratio, ..."""
    found: dict[str, float] = {}
    for layer in layers:
        values = asdict(layer)
        found |= {f"{layer.name}.{field}": value for field, value in values.items() if field != "name"}
    return found | {f"{name}.update_ratio": ratio for name, ratio in (ratios or {}).items()}


def _moments(values: NDArray[Any]) -> tuple[float, float]:
    return float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))


def _length(values: NDArray[Any]) -> Any:
    wide = values.astype(np.float64).ravel()
    return np.sqrt(wide @ wide)
