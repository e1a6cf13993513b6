"""The part of the job spec that describes the network: three notations, the limits of each.

What one field alone decides is checked here, by the engine's own lists and bounds; what several decide together, a
graph's cycles and widths, by the engine when the spec is resolved.
"""

from typing import Annotated, Any

from pydantic import Field

from core.activations import ACTIVATIONS
from core.dropout import MOST_RATE
from core.initializers import INITIALIZERS
from core.layer_spec import OPERATIONS
from service.fields import AUTO, Section, choice, flag, kind, number, text, whole

MOST_LAYERS, MOST_NODES, MOST_INPUTS = 100, 200, 100
MOST_UNITS = 2**53

Units = Annotated[int, *whole(1, MOST_UNITS)]
Name = Annotated[str, *text(longest=64)]


class Treatment(Section):
    """What happens to a layer's net inputs. null: as the network has it."""

    activation: Annotated[str | dict[str, Any] | None, *kind(ACTIVATIONS, null=True)] = None
    dropout: Annotated[float | None, *number(0.0, at_most=MOST_RATE, null=True)] = None
    layer_norm: Annotated[bool | None, *flag(null=True)] = None
    initializer: Annotated[str | None, *choice(AUTO, *INITIALIZERS, null=True)] = None


class Layer(Treatment):
    """A hidden layer."""

    units: Units


class GraphNode(Treatment):
    """A node of a graph: an operation on the values of other nodes, or of the features."""

    name: Name
    inputs: Annotated[list[Name], Field(min_length=1, max_length=MOST_INPUTS)]
    operation: Annotated[str, *choice(*OPERATIONS)] = "affine"
    units: Annotated[int | None, *whole(1, MOST_UNITS, null=True)] = None


class Network(Section):
    """The network between features and targets, by one of `hidden`, `layers` and `graph`."""

    hidden: Annotated[list[Units], Field(max_length=MOST_LAYERS)] = Field(default=[256, 128])
    activation: Annotated[str | dict[str, Any], *kind(ACTIVATIONS, auto=True)] = AUTO
    input_noise: Annotated[float, *number(0.0)] = 0.0
    input_dropout: Annotated[float, *number(0.0, at_most=MOST_RATE)] = 0.0
    dropout: Annotated[float, *number(0.0, at_most=MOST_RATE)] = 0.0
    layer_norm: Annotated[bool, *flag()] = False
    initializer: Annotated[str, *choice(AUTO, *INITIALIZERS)] = AUTO
    layers: Annotated[list[Layer], Field(min_length=1, max_length=MOST_LAYERS)] | None = None
    graph: Annotated[list[GraphNode], Field(min_length=1, max_length=MOST_NODES)] | None = None
