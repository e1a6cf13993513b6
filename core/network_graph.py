"""From the specification of a network to its graph, its parameters and its costs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .activations import ACTIVATIONS
from .dropout import Dropout
from .graph import AnyNode, Graph, Input, Node, Parameter
from .initializers import INITIALIZERS
from .layer_norm import LayerNorm
from .network_spec import Block, NetworkSpec, blocks
from .operations import Add, Affine, Concatenate, Multiply, Operation, WeightedSum
from .parameters import ParameterLayout
from .specification import make_kind
from .storage import ROWS

# The first word of the seed sequence that initial parameters are drawn from: "init", told apart from all other draws.
_INITIALIZATION = 0x696E6974
_COMBINATIONS: dict[str, type[Operation]] = {"sum": Add, "product": Multiply, "concatenate": Concatenate}


def parameter_count(spec: NetworkSpec) -> int:
    """P, exactly, without building anything."""
    return sum(_parameters(block) for block in blocks(spec))


def summary(spec: NetworkSpec) -> list[dict[str, Any]]:
    """One row a layer: name, shape [inputs, units], parameters, FLOPs a row of one training step.

    FLOPs are those of the matrix products: 6 a weight (2 forward, 4 backward), or 4 where the layer's input is data
    alone, which needs no error signal. The layers of a graph are named as its nodes are, others layer1, layer2, ...
    """
    return [
        {
            "name": block.parameters,
            "shape": [block.width, block.units],
            "parameters": _parameters(block),
            "flops": (6 if block.sends else 4) * block.width * block.units if block.operation == "affine" else 0,
        }
        for block in blocks(spec)
    ]


def network_graph(spec: NetworkSpec) -> Graph:
    """The graph of a network: features -> layer1 -> hidden1 -> layer2 -> ... -> outputs -> predictions.

    With targets and weights: outputs -> losses -> loss. Layer k, the output layer included, has the parameters
    layer<k>.weights (inputs, units) and layer<k>.bias (units,), and layer<k>.gain and layer<k>.shift (units,) if it is
    normalized. In a network by `graph` layers are named as the nodes are, the last one outputs.
    """
    nodes: list[AnyNode] = [Input("features", (ROWS, spec.inputs))]
    if spec.input_noise:
        nodes += [Input("features.noise", (ROWS, spec.inputs))]
    for block in blocks(spec):
        nodes += _nodes(block)
    loss = spec.make_loss()
    if loss.prediction is not None:
        nodes += [Node("predictions", loss.prediction(), "outputs")]
    nodes += [Input("targets", loss.target_shape(spec.outputs), np.int32 if loss.classes else None)]
    nodes += [Node("losses", loss, "outputs", "targets")]
    nodes += [Input("weights", (ROWS,)), Node("loss", WeightedSum(), "losses", "weights")]
    return Graph(*nodes)


def initial_parameters(spec: NetworkSpec, seed: int) -> NDArray[Any]:
    """The flat parameter vector (P,) before the first step, by `spec` and `seed` >= 0 alone.

    Biases and shifts are 0, gains 1.
    """
    layout = parameter_layout(network_graph(spec))
    flat = np.zeros(layout.size, spec.dtype)
    views = layout.views(flat)
    found = blocks(spec)
    for number, block in enumerate((block for block in found if block.operation == "affine"), start=1):
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, _INITIALIZATION, number))))
        initialize = INITIALIZERS[block.initializer]
        views[f"{block.parameters}.weights"][...] = initialize(generator, block.width, block.units)
    for block in found:
        if block.layer_norm:
            views[f"{block.parameters}.gain"].fill(1)
    return flat


def parameter_layout(graph: Graph) -> ParameterLayout:
    """The parameters of `graph` in the order in which they were declared."""
    names = tuple(parameter.name for parameter in graph.parameters)
    return ParameterLayout(names, tuple(parameter.shape for parameter in graph.parameters))


def _parameters(block: Block) -> int:
    affine = (block.width + 1) * block.units if block.operation == "affine" else 0
    return affine + (2 * block.units if block.layer_norm else 0)


def _nodes(block: Block) -> list[AnyNode]:
    """The parameters and nodes of one layer."""
    nodes: list[AnyNode] = []
    if block.operation == "affine":
        weights, bias = f"{block.parameters}.weights", f"{block.parameters}.bias"
        nodes += [Parameter(weights, (block.width, block.units)), Parameter(bias, (block.units,))]
        nodes += [Node(block.net, Affine(), *block.inputs, weights, bias)]
    else:
        nodes += [Node(block.net, _COMBINATIONS[block.operation](), *block.inputs)]
    last = block.net
    if block.layer_norm:
        gain, shift = f"{block.parameters}.gain", f"{block.parameters}.shift"
        nodes += [Parameter(gain, (block.units,)), Parameter(shift, (block.units,))]
        normalized = f"{block.net}.normalized" if block.activation else block.name
        nodes += [Node(normalized, LayerNorm(), last, gain, shift)]
        last = normalized
    if block.activation:
        nodes += [Node(block.name, make_kind(block.activation, ACTIVATIONS), last)]
    if block.dropout:
        mask = f"{block.name}.mask"
        nodes += [Input(mask, (ROWS, block.units)), Node(block.value, Dropout(), block.name, mask)]
    return nodes
