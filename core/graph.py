"""The computation graph: what is computed from what. Nodes are declared by name, in any order.

    Graph(Parameter("t"), Node("x", Cos(), "t"), Node("y", Square(), "t"),
          Node("xy", Multiply(), "x", "y"), Node("e", Exp(), "xy"), Node("f", Add(), "y", "e"))

A `Plan` turns it into calls on buffers.
"""

from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter

import numpy as np

from .errors import GraphError
from .operations import Operation
from .storage import Shape


@dataclass(frozen=True)
class Input:
    """Data that the caller provides for each minibatch. `dtype` None: the plan's."""

    name: str
    shape: Shape = ()
    dtype: type[np.generic] | None = None
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parameter:
    """What training changes, and so what error signals are for."""

    name: str
    shape: Shape = ()
    parents: tuple[str, ...] = ()


@dataclass(frozen=True, init=False)
class Node:
    """The value that `operation` makes of the values of `parents`."""

    name: str
    operation: Operation
    parents: tuple[str, ...]

    def __init__(self, name: str, operation: Operation, *parents: str) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "operation", operation)
        object.__setattr__(self, "parents", parents)


AnyNode = Input | Parameter | Node


class Graph:
    """A directed acyclic graph of nodes; raises GraphError if it is none, or if the shapes in it do not fit."""

    def __init__(self, *nodes: AnyNode) -> None:
        self._nodes = {node.name: node for node in nodes}
        if len(self._nodes) < len(nodes):
            names = [node.name for node in nodes]
            raise GraphError("one name for several nodes", tuple({name for name in names if names.count(name) > 1}))
        for node in nodes:
            for parent in node.parents:
                if parent not in self._nodes:
                    raise GraphError(f"{node.name} has the unknown input {parent}", (node.name, parent))
        self.order = self._topological_order()
        self.shapes = self._shapes()

    def __getitem__(self, name: str) -> AnyNode:
        return self._nodes[name]

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters in the order in which they were declared."""
        return tuple(node for node in self._nodes.values() if isinstance(node, Parameter))

    @cached_property
    def children(self) -> dict[str, tuple[str, ...]]:
        """For each node the nodes that it is a parent of, once for each time that it is."""
        children: dict[str, list[str]] = {name: [] for name in self.order}
        for name in self.order:
            for parent in self._nodes[name].parents:
                children[parent].append(name)
        return {name: tuple(found) for name, found in children.items()}

    def ancestors(self, name: str) -> frozenset[str]:
        """`name` and all that its value depends on."""
        found = {name}
        for candidate in reversed(self.order):
            if candidate in found:
                found.update(self._nodes[candidate].parents)
        return frozenset(found)

    def descendants(self, *names: str) -> frozenset[str]:
        """`names` and all whose value depends on one of them."""
        found = set(names)
        for candidate in self.order:
            if not found.isdisjoint(self._nodes[candidate].parents):
                found.add(candidate)
        return frozenset(found)

    def _topological_order(self) -> tuple[str, ...]:
        """Every node after its parents."""
        try:
            return tuple(TopologicalSorter({name: node.parents for name, node in self._nodes.items()}).static_order())
        except CycleError as error:
            raise GraphError("a node depends on itself", tuple(error.args[1][:-1])) from error

    def _shapes(self) -> dict[str, Shape]:
        shapes: dict[str, Shape] = {}
        for name in self.order:
            node = self._nodes[name]
            if isinstance(node, Node):
                parents = [shapes[parent] for parent in node.parents]
                try:
                    shapes[name] = node.operation.shape(*parents)
                except ValueError as error:
                    message = f"{type(node.operation).__name__} got {', '.join(map(str, parents))}: {error}"
                    raise GraphError(message, (name, *node.parents)) from error
            else:
                shapes[name] = node.shape
        return shapes
