"""A plan: a graph as two lists of calls, forward and backward, on buffers that are allocated once.

Forward runs the nodes in topological order. Backward runs them in reverse: every node has then received the error
signals of all its children, and sends each parent its message. The first message that arrives at a node is written
where its error signal lies, later ones are added to it. What data alone determines receives no message.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from .errors import GraphError
from .graph import Graph, Input, Node
from .storage import Array, Shape, Storage

Call = tuple[Callable[..., Any], list[Any]]
Views = Mapping[str, Array]


class Place:
    """Where the calls refer to an array that the caller provides, and may exchange from one run to the next."""

    def __init__(self, name: str, shape: Shape, dtype: np.dtype[Any]) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype
        self._uses: list[tuple[list[Any], int]] = []
        self._array: Array | None = None

    @property
    def array(self) -> Array:
        """What the calls use now; bound before any run."""
        return cast(Array, self._array)

    def bind(self, array: Array) -> None:
        """Let the calls use `array`; raises GraphError where its shape or dtype is another."""
        if array is self._array:
            return
        if array.shape != self.shape or array.dtype != self.dtype:
            got, expected = f"{array.dtype} {array.shape}", f"{self.dtype} {self.shape}"
            raise GraphError(f"an array of {expected} is wanted, not one of {got}", (self.name,))
        self.exchange(array)

    def exchange(self, array: Array) -> None:
        """`bind`, for an array that is known to fit."""
        self._array = array
        for arguments, position in self._uses:
            arguments[position] = array

    def used_in(self, arguments: list[Any], position: int) -> None:
        """Remember that the place stands at `position` among the arguments of a call."""
        self._uses.append((arguments, position))


class Plan:
    """The calls that compute `graph` for `rows` rows; raises GraphError where an output is no node of it.

    `forward` can be asked for `outputs` and `loss`, whose values may be read afterwards; `backward` differentiates
    `loss`, or the sum of its elements. Bind every place before a run: `inputs` and `parameters`, and for `backward`
    `gradients`, whose arrays it overwrites.
    """

    def __init__(self, graph: Graph, rows: int, storage: Storage, outputs: Sequence[str], loss: str) -> None:
        self._graph, self._storage, self._outputs, self._loss = graph, storage, (*outputs, loss), loss
        unknown = tuple(name for name in self._outputs if name not in graph.shapes)
        if unknown:
            raise GraphError("the graph has no such node to put out", unknown)
        self._values: dict[str, Array | Place] = {}
        self._workspaces: dict[str, tuple[Array, ...]] = {}
        self._signals: dict[str, Array | Place] = {}
        self.inputs: dict[str, Place] = {}
        self.parameters: dict[str, Place] = {}
        self.gradients: dict[str, Place] = {}
        self._bound_parameters: Views | None = None
        self._bound_gradients: Views | None = None
        storage.start_plan(rows)
        calls = self._plan_forward()
        self._forward = {
            output: [call for name, call in calls.items() if name in graph.ancestors(output)]
            for output in self._outputs
        }
        self._backward = self._plan_backward()

    def forward(self, output: str) -> Array:
        """The value of `output`, one of the plan's: an array that the next run overwrites."""
        for function, arguments in self._forward[output]:
            function(*arguments)
        return self.value(output)

    def value(self, output: str) -> Array:
        """The value of one of the plan's outputs that the last run has passed through.

        Of another node it is what lies in its place: its value, or that of the elementwise child that took the place.
        """
        value = self._values[output]
        return value.array if isinstance(value, Place) else value

    def backward(self, scale: float = 1.0) -> None:
        """Write the gradient of `scale` L, as the last `forward(loss)` left L, into the places of `gradients`."""
        self._scale.fill(scale)
        for function, arguments in self._backward:
            function(*arguments)

    def signal(self, name: str) -> Array | None:
        """The error signal that arrived at a node in the last run, None where none is computed.

        A signal that was turned into the message to the one parent in its place is that message.
        """
        signal = self._signals.get(name)
        return signal.array if isinstance(signal, Place) else signal

    def slope(self, name: str) -> Array:
        """A fresh array: dz/dx of an elementwise node, for the values of the last run."""
        node = self._graph[name]
        if not isinstance(node, Node) or not node.operation.elementwise:
            raise GraphError("it is not elementwise, and has no slope", (name,))
        derivative = node.operation.derivatives(*(self._graph.shapes[parent] for parent in node.parents))[0]
        ones = np.ones_like(self.value(name))
        operands = (o.array if isinstance(o, Place) else o for o in self._operands(node))
        cast(Callable[..., Any], derivative)(ones, ones, *operands)
        return ones

    def bind_parameters(self, views: Views) -> None:
        """Compute with these arrays, by name; nothing is to be done if they are the mapping bound last."""
        if views is not self._bound_parameters:
            self._bound_parameters = views
            for name, place in self.parameters.items():
                place.exchange(views[name])

    def bind_gradients(self, views: Views) -> None:
        """Let `backward` write into these arrays, by name."""
        if views is not self._bound_gradients:
            self._bound_gradients = views
            for name, place in self.gradients.items():
                place.exchange(views[name])

    def _plan_forward(self) -> dict[str, Call]:
        calls: dict[str, Call] = {}
        graph, storage = self._graph, self._storage
        for name in graph.order:
            node, shape = graph[name], graph.shapes[name]
            if not isinstance(node, Node):
                dtype = node.dtype if isinstance(node, Input) else None
                place = Place(name, storage.shape(shape), np.dtype(dtype or storage.dtype))
                (self.inputs if isinstance(node, Input) else self.parameters)[name] = place
                self._values[name] = place
                continue
            if self._may_overwrite_parent(node):
                self._values[name] = self._values[node.parents[0]]
            else:
                self._values[name] = storage.buffer(shape, node.operation.dtype)
            storage.start_node()
            self._workspaces[name] = node.operation.workspace(storage, *(graph.shapes[p] for p in node.parents))
            calls[name] = self._call(node.operation.forward, *self._operands(node))
        return calls

    def _may_overwrite_parent(self, node: Node) -> bool:
        """Whether nobody will miss the value of the parent if the node writes its own over it."""
        if not node.operation.elementwise or node.operation.reads_parents:
            return False
        parent = self._graph[node.parents[0]]
        return (
            isinstance(parent, Node)
            and len(self._graph.children[parent.name]) == 1
            and parent.name not in self._outputs
            and not parent.operation.reads_output
        )

    def _plan_backward(self) -> list[Call]:
        graph, storage = self._graph, self._storage
        calls: list[Call] = []
        learned = graph.descendants(*(parameter.name for parameter in graph.parameters))
        concerned = learned & graph.ancestors(self._loss)
        signals = self._signals
        signals[self._loss] = self._scale = np.ones_like(self.value(self._loss))  # dL/dL
        for node in (graph[name] for name in reversed(graph.order) if name in concerned):
            if not isinstance(node, Node) or node.name not in signals:
                continue
            derivatives = node.operation.derivatives(*(graph.shapes[parent] for parent in node.parents))
            for parent, derivative in zip(node.parents, derivatives, strict=True):
                if parent not in concerned or derivative is None:
                    continue
                operands = signals[node.name], *self._operands(node)
                if parent not in signals:
                    signals[parent] = self._place_of_signal(parent, node, signals[node.name])
                    calls.append(self._call(derivative, signals[parent], *operands))
                else:
                    message, total = storage.message(graph.shapes[parent]), signals[parent]
                    calls.append(self._call(derivative, message, *operands))
                    calls.append(self._call(np.add, total, message, total))
        for parameter in graph.parameters:
            if parameter.name not in signals:
                raise GraphError(f"{self._loss} does not depend on the parameter", (parameter.name,))
        return calls

    def _place_of_signal(self, parent: str, child: Node, child_signal: Array | Place) -> Array | Place:
        """Where the error signal of `parent` is accumulated, `child` being the first to send a message."""
        shape = self._storage.shape(self._graph.shapes[parent])
        if parent in self.parameters:
            self.gradients[parent] = Place(parent, shape, self._storage.dtype)
            return self.gradients[parent]
        if child.operation.elementwise and child.name != self._loss:
            return child_signal  # which has done its work with this, its only message; dL/dL is for every run
        return self._storage.buffer(self._graph.shapes[parent])

    def _operands(self, node: Node) -> tuple[Array | Place, ...]:
        """What the node's functions work on: its value, its parents' values, its workspace."""
        return self._values[node.name], *(self._values[parent] for parent in node.parents), *self._workspaces[node.name]

    def _call(self, function: Callable[..., Any], *operands: Array | Place) -> Call:
        arguments: list[Any] = list(operands)
        for position, operand in enumerate(operands):
            if isinstance(operand, Place):
                operand.used_in(arguments, position)
        return function, arguments
