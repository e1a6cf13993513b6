"""What an operation is: a value computed from the values of others, and beside it its local derivative.

`forward(z, x, ...)` writes the node's value z from the values of its parents. For each parent x there is a function
`to_x(message, signal, z, x, ...)`: given the error signal dL/dz that has arrived at the node, it writes the message

    dL/dz * dz/dx

that the node sends to that parent. A parent with several children adds up what they send: the multivariate chain rule.
An operation knows nothing of the graph that it is part of. All arrays are the plan's; the workspace that an operation
asks for comes last among the arguments. No call allocates.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from .storage import Array, Shape, Storage

LocalDerivative = Callable[..., None]


class Operation(ABC):
    """What a node computes. Its attributes tell the planner which buffers may be shared."""

    # Only the first parent has a derivative, and z has its shape; message and signal of `to_x` may be the same array.
    elementwise = False
    reads_parents = True  # some local derivative needs the value of a parent
    reads_output = False  # some local derivative needs z
    dtype: type[np.generic] | None = None  # of z, if it is not the plan's: for a loss, the end of a graph

    @abstractmethod
    def shape(self, *parents: Shape) -> Shape:
        """The shape of z; raises ValueError, saying what was expected, where the parents' shapes do not fit."""

    def workspace(self, storage: Storage, *parents: Shape) -> tuple[Array, ...]:
        """The arrays that forward and derivatives need besides z and the parents' values."""
        return ()

    @abstractmethod
    def forward(self, *arrays: Any) -> None:
        """Write z, the first of `arrays`, from the others."""

    @abstractmethod
    def derivatives(self, *parents: Shape) -> tuple[LocalDerivative | None, ...]:
        """The function that writes each parent's message; None for a parent without a derivative (a class number)."""


class Binary(Operation):
    """z = f(x, y), element by element, of two parents of one shape."""

    def shape(self, *parents: Shape) -> Shape:
        if len(parents) != 2 or parents[0] != parents[1]:
            raise ValueError("expected two parents of one shape")
        return parents[0]

    def derivatives(self, *parents: Shape) -> tuple[LocalDerivative | None, ...]:
        return self.to_x, self.to_y

    @abstractmethod
    def to_x(self, *arrays: Any) -> None:
        """Write the message to the first parent."""

    @abstractmethod
    def to_y(self, *arrays: Any) -> None:
        """Write the message to the second parent."""


class Unary(Operation):
    """z = f(x), element by element."""

    elementwise = True

    def shape(self, *parents: Shape) -> Shape:
        if len(parents) != 1:
            raise ValueError("expected one parent")
        return parents[0]

    def derivatives(self, *parents: Shape) -> tuple[LocalDerivative | None, ...]:
        return (self.to_x,)

    @abstractmethod
    def to_x(self, *arrays: Any) -> None:
        """Write the message to the parent; `message` may be `signal`."""
