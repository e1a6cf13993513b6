"""What layers and the nodes of a graph are specified by."""

import re
from dataclasses import dataclass
from typing import ClassVar

from .activations import ACTIVATIONS
from .dropout import MOST_RATE
from .errors import SpecificationError
from .initializers import INITIALIZERS
from .specification import (
    Choice,
    Specification,
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
            require_number("dropout", self.dropout, least=0.0, most=MOST_RATE)
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
