"""The network that a job spec describes: its notation checked, every layer in full, and what it costs. Pure.

The engine decides what a graph may be; its refusals become SpecErrors that name the spec's field. Nothing is allocated.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.errors import SpecificationError
from core.network import NetworkSpec, summary
from core.network_spec import Block, blocks
from core.specification import Choice
from service.errors import SpecError
from service.fields import AUTO
from service.resolve_data import ResolvedData, loss_name
from service.schemas import JobSpec

FEW_ROWS = 1000
_EVALUATED_ROWS = 512  # at a time, in a worker
_SCRATCH = 4  # arrays as wide as the widest layer that all layers share


@dataclass(frozen=True)
class ResolvedNetwork:
    """`section`: the spec's `network` without any `auto`; `layers`: a row of the plan for each."""

    section: dict[str, Any]
    spec: NetworkSpec
    layers: list[dict[str, Any]]

    @property
    def parameters(self) -> int:
        """P."""
        return sum(layer["parameters"] for layer in self.layers)

    @property
    def flops(self) -> int:
        """Of one training step, a row."""
        return sum(layer["flops"] for layer in self.layers)

    def worker_bytes(self, rows_a_shard: int) -> int:
        """What a worker's buffers take: those of a shard's part of a step, and those of evaluation."""
        layers = blocks(self.spec)
        scratch = _SCRATCH * max(block.units for block in layers)
        values = self.spec.inputs + sum(_values(block) for block in layers) + scratch
        rows = rows_a_shard + _EVALUATED_ROWS
        return np.dtype(self.spec.dtype).itemsize * (rows * values + rows_a_shard * self.spec.inputs)


def resolve_network(spec: JobSpec, data: ResolvedData, max_parameters: int) -> ResolvedNetwork:
    """For the widths of `data`; raises SpecError naming the field."""
    section = spec.network.model_dump()
    notation = _notation(spec, section)
    section["activation"] = _activation(spec, data)
    try:
        network = network_spec(section, data.loss, spec.training.precision, data.width, data.outputs)
    except SpecificationError as error:
        raise _refusal(error, section) from error
    layers = summary(network)
    parameters = sum(layer["parameters"] for layer in layers)
    if parameters > max_parameters:
        shown = f"{parameters:,}" if parameters < 10**18 else "more than 10^18"
        raise SpecError(f"network.{notation}", f"{shown} parameters; at most {max_parameters:,} are allowed")
    found = blocks(network)[1 if network.disturbs_features else 0 :]
    section["initializer"] = found[-1].initializer
    if notation != "hidden":
        pairs = zip(section[notation], found[:-1], strict=True)
        section[notation] = [_own(given) | _in_full(block) for given, block in pairs]
    return ResolvedNetwork(section, network, layers)


def network_spec(
    section: dict[str, Any], loss: str | dict[str, Any], dtype: str, inputs: int, outputs: int
) -> NetworkSpec:
    """The engine's specification of a spec's `network`, `loss` and `training.precision`.

    Raises SpecificationError. Specs stored by earlier versions lack the fields that came later.
    """
    delta = {"huber_delta": loss["delta"]} if isinstance(loss, dict) else {}
    treatments = ("input_noise", "input_dropout", "dropout", "layer_norm")
    treatment = {name: section[name] for name in treatments if name in section}
    return NetworkSpec(
        inputs=inputs,
        outputs=outputs,
        hidden=tuple(section["hidden"]),
        activation=section["activation"],
        initializer=section["initializer"],
        loss=loss_name(loss),
        dtype=dtype,
        layers=tuple(section["layers"] or ()),
        graph=tuple(section["graph"] or ()),
        **treatment,
        **delta,
    )


def _notation(spec: JobSpec, section: dict[str, Any]) -> str:
    """Which of the three is given. Beside another one the default `hidden` is none, and is written so."""
    given = [name for name in ("layers", "graph") if section[name] is not None]
    if "hidden" in spec.network.model_fields_set and section["hidden"]:
        given.insert(0, "hidden")
    if len(given) > 1:
        message = f"{given[0]} is given as well; expected one of hidden, layers and graph alone"
        raise SpecError(f"network.{given[1]}", message)
    if given and given[0] != "hidden":
        section["hidden"] = []
    for number, node in enumerate(section["graph"] or ()):
        if node["operation"] != "affine" and node["initializer"] is not None:
            path = f"network.graph[{number}].initializer"
            raise SpecError(path, f"a {node['operation']} has no weights; expected null, got {node['initializer']!r}")
    return given[0] if given else "hidden"


def _activation(spec: JobSpec, data: ResolvedData) -> str | dict[str, Any]:
    """Auto: tanh for few rows, whose functions are smooth as far as they can be known (docs/decisions/0004)."""
    if spec.network.activation == AUTO:
        return "tanh" if data.train < FEW_ROWS else "relu"
    return spec.network.activation


def _own(given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in ("name", "inputs", "operation", "units") if name in given}


def _in_full(block: Block) -> dict[str, Any]:
    """What a layer or node inherits, and what suits its activation, written out."""
    activation: str | Choice = block.activation or "identity"
    return {
        "activation": activation.to_json() if isinstance(activation, Choice) else activation,
        "dropout": block.dropout,
        "layer_norm": block.layer_norm,
        "initializer": block.initializer if block.operation == "affine" else None,
    }


def _refusal(error: SpecificationError, section: dict[str, Any]) -> SpecError:
    """The engine names a graph's nodes by name, the spec by number."""
    field = error.field
    if match := re.fullmatch(r"graph\.([\w-]+)\.(\w+)", field):
        numbers = [number for number, node in enumerate(section["graph"]) if node["name"] == match[1]]
        field = f"graph[{numbers[-1]}].{match[2]}"
    return SpecError(f"network.{field}", f"expected {error.expected}; got {error.value!r:.200}")


def _values(block: Block) -> int:
    """How many numbers a row takes in the buffers of a layer: values, error signals, and what is kept beside them."""
    activation = block.activation.name if isinstance(block.activation, Choice) else block.activation
    kept = 2 if block.layer_norm else 0  # the normalized net inputs, and their values after gain and shift
    kept += 3 if block.dropout else 0  # the mask, its random numbers, what they are compared with
    kept += 1 if activation in ("gelu", "silu") else 0  # the slope, or the sigmoid
    return block.units * (2 + kept)
