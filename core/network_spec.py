"""The specification of a network, and its layers one by one: three notations, one form to build from.

hidden   [256, 128]: layers one after the other, all alike
layers   [{units: 256, activation: gelu, dropout: 0.2}, {units: 128}]: each with what is its own
graph    [{name: a, inputs: [features], units: 64}, {name: b, inputs: [a], units: 64},
          {name: c, inputs: [a, b], operation: sum, activation: relu}]: any directed acyclic graph
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, ClassVar

from .activations import ACTIVATIONS
from .errors import SpecificationError
from .initializers import INITIALIZERS
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

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_RESERVED = ("features", "targets", "weights", "outputs", "predictions", "losses", "loss")
OPERATIONS = ("affine", "sum", "product", "concatenate")  # of a graph's nodes


class _Treatment(Specification):
    """What layers and nodes have in common: what happens to their net inputs. None: as the network has it."""

    optional: ClassVar[tuple[str, ...]] = ("operation", "units", "activation", "dropout", "layer_norm", "initializer")
    activation: str | Choice | None
    dropout: float | None
    layer_norm: bool | None
    initializer: str | None

    def _check(self) -> None:
        if self.activation is not None:
            object.__setattr__(self, "activation", require_kind("activation", self.activation, ACTIVATIONS))
        if self.dropout is not None:
            require_number("dropout", self.dropout, least=0.0, below=1.0)
        if self.layer_norm is not None:
            require_flag("layer_norm", self.layer_norm)
        if self.initializer is not None:
            require_choice("initializer", self.initializer, ("auto", *INITIALIZERS))


@dataclass(frozen=True)
class LayerSpec(_Treatment):
    """A hidden layer of `units` units."""

    units: int
    activation: str | Choice | None = None
    dropout: float | None = None
    layer_norm: bool | None = None
    initializer: str | None = None

    def __post_init__(self) -> None:
        require_whole("units", self.units, 1)
        self._check()


@dataclass(frozen=True)
class NodeSpec(_Treatment):
    """A node of a graph: an operation on the values of `inputs`, which are other nodes' names or "features".

    affine takes one input and has `units`; sum (of two or more) and product (of two) take inputs of one width;
    concatenate takes any. Unless they say otherwise, only affine nodes have the network's activation, dropout and layer
    normalization: the others have none.
    """

    name: str
    inputs: tuple[str, ...]
    operation: str = "affine"
    units: int | None = None
    activation: str | Choice | None = None
    dropout: float | None = None
    layer_norm: bool | None = None
    initializer: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name) or self.name in _RESERVED:
            expected = f"a letter, then letters, digits, _ and -, at most 64, and none of {', '.join(_RESERVED)}"
            raise SpecificationError("name", self.name, expected)
        require_choice("operation", self.operation, OPERATIONS)
        if not isinstance(self.inputs, tuple) or not all(isinstance(name, str) for name in self.inputs):
            raise SpecificationError("inputs", self.inputs, "a list of names")
        fewest, most = {"affine": (1, 1), "product": (2, 2), "sum": (2, None), "concatenate": (1, None)}[self.operation]
        if len(self.inputs) < fewest or (most is not None and len(self.inputs) > most):
            expected = f"{'exactly' if most else 'at least'} {fewest}, which {self.operation} takes"
            raise SpecificationError("inputs", list(self.inputs), expected)
        if self.operation == "affine":
            require_whole("units", self.units, 1)
        elif self.units is not None:
            raise SpecificationError("units", self.units, f"nothing: the inputs decide how wide a {self.operation} is")
        self._check()


@dataclass(frozen=True)
class NetworkSpec(Specification):
    """A network from `inputs` numbers to `outputs` numbers a row, by one of `hidden`, `layers` and `graph`.

    The output layer, affine, is no part of them: it follows the last layer, or the one node that no other takes.
    """

    optional: ClassVar[tuple[str, ...]] = ("huber_delta", "dropout", "layer_norm", "layers", "graph")

    inputs: int
    outputs: int
    hidden: tuple[int, ...] = ()
    activation: str | Choice = "relu"  # a name, or {name: leaky_relu, negative_slope: 0.01}
    initializer: str = "auto"  # what suits the activation: he for relu's family, else glorot
    loss: str = "cross_entropy"
    dtype: str = "float32"
    huber_delta: float = 1.0  # beyond this error, in standardized units, the loss huber is linear
    dropout: float = 0.0  # the rate at which units of hidden layers are silent in training
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
        require_number("dropout", self.dropout, least=0.0, below=1.0)
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
    return (*hidden, outputs)


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
