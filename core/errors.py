"""Everything the engine refuses, as one tree.

CoreError
 ├─ GraphError          a cycle, an unknown input, a shape that does not fit: the nodes are named
 ├─ SpecificationError  a field of a specification holds what it must not
 ├─ NonFiniteError      a loss, gradient or parameter stopped being a number
 ├─ DataError           a row or column that the fitted preprocessing cannot take
 └─ ModelFileError      a model folder that is damaged, or not one

Each passes its raw arguments on to `Exception`, so that it survives pickling between processes.
"""

from typing import Any


class CoreError(Exception):
    """Base of all errors of the engine."""


class GraphError(CoreError):
    """The graph cannot be built. `nodes` are the names of the nodes at fault."""

    def __init__(self, message: str, nodes: tuple[str, ...]) -> None:
        super().__init__(message, nodes)
        self.message, self.nodes = message, nodes

    def __str__(self) -> str:
        return f"{self.message} (nodes: {', '.join(self.nodes)})"


class SpecificationError(CoreError):
    """A specification's `field` holds `value`; `expected` says what would be right."""

    def __init__(self, field: str, value: Any, expected: str) -> None:
        super().__init__(field, value, expected)
        self.field, self.value, self.expected = field, value, expected

    def __str__(self) -> str:
        return f"{self.field} is {self.value!r}; expected {self.expected}"


class NonFiniteError(CoreError):
    """`what` (loss, gradient, parameters) is infinite or not a number."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return f"the {self.what} is not finite"


class DataError(CoreError):
    """A row that cannot be taken: its 0-based place in the request and its column (None: the whole row)."""

    def __init__(self, row: int, column: str | None, value: Any, expected: str) -> None:
        super().__init__(row, column, value, expected)
        self.row, self.column, self.value, self.expected = row, column, value, expected

    def __str__(self) -> str:
        place = f"row {self.row}" if self.column is None else f"row {self.row}, column {self.column!r}"
        return f"{place}: got {self.value!r}; expected {self.expected}"


class ModelFileError(CoreError):
    """The model folder's file `name` cannot be used, for `reason`."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"
