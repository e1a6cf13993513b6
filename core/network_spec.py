"""The specification of a network, and its layers one by one: three notations, one form to build from.

hidden   [256, 128]: layers one after the other, all alike
layers   [{units: 256, activation: gelu, dropout: 0.2}, {units: 128}]: each with what is its own
graph    [{name: a, inputs: [features], units: 64}, {name: b, inputs: [a], units: 64},
          {name: c, inputs: [a, b], operation: sum, activation: relu}]: any directed acyclic graph
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any, ClassVar

from .activations import ACTIVATIONS
from .dropout import MOST_RATE
from .errors import SpecificationError
from .initializers import INITIALIZERS
from .layer_spec import LayerSpec, NodeSpec
from .losses import LOSSES, Huber, Loss
from .specification import (
    Choice,
    Specification,
    make_kind,
    require_choice,
    require_flag,
    require_kind,
    require_number,
    require_whole,
)


@dataclass(frozen=True)
class NetworkSpec(Specification):
    """A network from `inputs` numbers to `outputs` numbers a row, by one of `hidden`, `layers` and `graph`.

    The output layer, affine, is no part of them: it follows the last layer, or the one node that no other takes.
    """

    optional: ClassVar[tuple[str, ...]] = (
        "huber_delta",
        "input_noise",
        "input_dropout",
        "dropout",
        "layer_norm",
        "layers",
        "graph",
    )

    inputs: int
    outputs: int
    hidden: tuple[int, ...] = ()
    activation: str | Choice = "relu"  # a name, or {name: leaky_relu, negative_slope: 0.01}
    initializer: str = "auto"  # what suits the activation: he for relu's family, else glorot
    loss: str = "cross_entropy"
    dtype: str = "float32"
    huber_delta: float = 1.0  # beyond this error, in standardized units, the loss huber is linear
    input_noise: float = 0.0  # the standard deviation of what training adds to the features, at first
    input_dropout: float = 0.0  # the rate at which features are silent in training
    dropout: float = 0.0  # that of the hidden layers' units
    layer_norm: bool = False  # whether hidden layers normalize their net inputs
    layers: tuple[LayerSpec, ...] = ()
    graph: tuple[NodeSpec, ...] = ()

    def __post_init__(self) -> None:
        require_whole("inputs", self.inputs, 1)
        require_whole("outputs", self.outputs, 1)
        if not isinstance(self.hidden, tuple):
            raise SpecificationError("hidden", self.hidden, "a list of whole numbers")
        for units in self.hidden:
            require_whole("hidden", units, 1)
        object.__setattr__(self, "activation", require_kind("activation", self.activation, ACTIVATIONS))
        require_choice("initializer", self.initializer, ("auto", *INITIALIZERS))
        require_choice("loss", self.loss, LOSSES)
        require_choice("dtype", self.dtype, ("float32", "float64"))
        require_number("huber_delta", self.huber_delta, above=0.0)
        require_number("input_noise", self.input_noise, least=0.0)
        require_number("input_dropout", self.input_dropout, least=0.0, most=MOST_RATE)
        require_number("dropout", self.dropout, least=0.0, most=MOST_RATE)
        require_flag("layer_norm", self.layer_norm)
        if self.loss == "binary_cross_entropy" and self.outputs != 2:
            raise SpecificationError("outputs", self.outputs, "2, the classes of binary_cross_entropy (by one unit)")
        object.__setattr__(self, "layers", _specifications("layers", self.layers, LayerSpec))
        object.__setattr__(self, "graph", _specifications("graph", self.graph, NodeSpec))
        if sum(map(bool, (self.hidden, self.layers, self.graph))) > 1:
            field = "graph" if self.graph else "layers"
            raise SpecificationError(field, len(getattr(self, field)), "one of hidden, layers and graph alone")
        if self.graph:
            blocks(self)  # a cycle, an unknown input, widths that do not fit

    @property
    def disturbs_features(self) -> bool:
        """Whether training adds a layer before all others, which has no parameters."""
        return self.input_noise > 0 or self.input_dropout > 0

    def make_loss(self) -> Loss:
        """The loss by its name and number."""
        return Huber(self.huber_delta) if self.loss == "huber" else LOSSES[self.loss]()


@dataclass(frozen=True)
class Block:
    """A layer in full: an operation, layer normalization, activation and dropout, each but the first if it is there."""

    name: str  # of its value before dropout
    net: str  # of the operation's value
    parameters: str  # what the names of its parameters begin with
    operation: str
    inputs: tuple[str, ...]  # names of other blocks' values, dropped where they are
    width: int  # of all inputs together
    units: int
    activation: str | Choice | None
    dropout: float
    layer_norm: bool
    initializer: str
    sends: bool  # whether its inputs depend on parameters, and so receive error signals

    @property
    def value(self) -> str:
        """The node that other blocks take."""
        return f"{self.name}.dropped" if self.dropout else self.name


def blocks(spec: NetworkSpec) -> tuple[Block, ...]:
    """The layers of `spec` as they are declared, the output layer last. SpecificationError names nodes at fault."""
    hidden = _graph(spec) if spec.graph else _chain(spec)
    last = _last(spec, hidden) if spec.graph else (hidden[-1] if hidden else None)
    outputs = Block(
        name="outputs",
        net="outputs",
        parameters="outputs" if spec.graph else f"layer{len(hidden) + 1}",
        operation="affine",
        inputs=(last.value if last else "features",),
        width=last.units if last else spec.inputs,
        units=spec.make_loss().units(spec.outputs),
        activation=None,
        dropout=0.0,
        layer_norm=False,
        initializer=_initializer(spec.initializer, spec.activation),
        sends=last is not None,
    )
    return _with_features_disturbed(spec, (*hidden, outputs)) if spec.disturbs_features else (*hidden, outputs)


def _with_features_disturbed(spec: NetworkSpec, layers: tuple[Block, ...]) -> tuple[Block, ...]:
    """The same layers over features that are noisy, or silent at random: a layer before them that does nothing else."""
    features = Block(
        name="features.taken",
        net="features.taken",
        parameters="features",
        operation="sum" if spec.input_noise else "concatenate",
        inputs=("features", "features.noise") if spec.input_noise else ("features",),
        width=spec.inputs,
        units=spec.inputs,
        activation=None,
        dropout=spec.input_dropout,
        layer_norm=False,
        initializer="glorot",  # of no parameters
        sends=False,
    )

    def over(layer: Block) -> Block:
        return replace(layer, inputs=tuple(features.value if name == "features" else name for name in layer.inputs))

    return features, *(over(layer) for layer in layers)


def _chain(spec: NetworkSpec) -> list[Block]:
    found: list[Block] = []
    source, width = "features", spec.inputs
    layers = spec.layers or tuple(LayerSpec(units) for units in spec.hidden)
    for number, layer in enumerate(layers, start=1):
        activation = spec.activation if layer.activation is None else layer.activation
        found.append(
            Block(
                name=f"hidden{number}",
                net=f"layer{number}",
                parameters=f"layer{number}",
                operation="affine",
                inputs=(source,),
                width=width,
                units=layer.units,
                activation=activation,
                dropout=spec.dropout if layer.dropout is None else layer.dropout,
                layer_norm=spec.layer_norm if layer.layer_norm is None else layer.layer_norm,
                initializer=_initializer(layer.initializer or spec.initializer, activation),
                sends=number > 1,
            )
        )
        source, width = found[-1].value, layer.units
    return found


def _graph(spec: NetworkSpec) -> list[Block]:
    nodes = {node.name: node for node in spec.graph}
    found: dict[str, Block] = {}
    for name in _order(spec.graph):
        if name == "features":
            continue
        node, affine = nodes[name], nodes[name].operation == "affine"
        widths = [found[source].units if source in found else spec.inputs for source in node.inputs]
        if node.operation in ("sum", "product") and len(set(widths)) > 1:
            parents = ", ".join(f"{source} ({width})" for source, width in zip(node.inputs, widths, strict=True))
            raise SpecificationError(f"graph.{name}.inputs", parents, f"nodes of one width for a {node.operation}")
        width = sum(widths)
        activation = node.activation or (spec.activation if affine else "identity")
        layer_norm = (spec.layer_norm and affine) if node.layer_norm is None else node.layer_norm
        plain = not layer_norm and activation == "identity"
        sources = [found.get(source) for source in node.inputs]
        found[name] = Block(
            name=name,
            net=name if plain else f"{name}.net",
            parameters=name,
            operation=node.operation,
            inputs=tuple(source.value if source else "features" for source in sources),
            width=width,
            units=node.units or (width if node.operation == "concatenate" else widths[0]),
            activation=None if activation == "identity" else activation,
            dropout=(spec.dropout if affine else 0.0) if node.dropout is None else node.dropout,
            layer_norm=layer_norm,
            initializer=_initializer(node.initializer or spec.initializer, activation),
            sends=any(
                source.sends or source.operation == "affine" or source.layer_norm for source in sources if source
            ),
        )
    return [found[node.name] for node in spec.graph]


def _order(nodes: tuple[NodeSpec, ...]) -> list[str]:
    """The names, every node after its inputs."""
    names = [node.name for node in nodes]
    for number, node in enumerate(nodes):
        if node.name in names[:number]:
            raise SpecificationError(f"graph.{node.name}.name", node.name, "a name for each node")
        for source in node.inputs:
            if source != "features" and source not in names:
                raise SpecificationError(f"graph.{node.name}.inputs", source, f"features or one of {', '.join(names)}")
    try:
        return list(TopologicalSorter({node.name: node.inputs for node in nodes}).static_order())
    except CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        raise SpecificationError("graph", cycle, "no node that depends on itself") from error


def _last(spec: NetworkSpec, hidden: Iterable[Block]) -> Block:
    """The one block that no other takes."""
    taken = {source for node in spec.graph for source in node.inputs}
    left = [block for block in hidden if block.name not in taken]
    if len(left) > 1:
        names = ", ".join(block.name for block in left)
        raise SpecificationError("graph", names, "one node alone that no other takes: the output layer takes it")
    return left[0]


def _initializer(name: str, activation: str | Choice) -> str:
    return make_kind(activation, ACTIVATIONS).initializer if name == "auto" else name


def _specifications(field: str, value: Any, kind: type[LayerSpec] | type[NodeSpec]) -> tuple[Any, ...]:
    if not isinstance(value, tuple):
        raise SpecificationError(field, value, "a list")
    made: list[Any] = []
    for number, element in enumerate(value):
        if isinstance(element, kind):
            made.append(element)
            continue
        if not isinstance(element, Mapping):
            raise SpecificationError(f"{field}[{number}]", element, "a mapping of its fields")
        try:
            made.append(kind.from_json(element))
        except SpecificationError as error:
            raise SpecificationError(f"{field}[{number}].{error.field}", error.value, error.expected) from error
    return tuple(made)
