"""What the specifications of networks, optimizers and schedules share: strict JSON, and errors that name the field.

A specification is a frozen dataclass whose `__post_init__` refuses what it must not hold, so that an object that exists
is a valid one, wherever it came from.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Self

from .errors import SpecificationError


class Specification:
    """Base of the frozen dataclasses that describe what to build: `from_json(to_json())` is the same again."""

    def to_json(self) -> dict[str, Any]:
        """The fields by name, in plain JSON types (a tuple becomes a list)."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The specification that `data` describes; raises SpecificationError on an unknown, missing or wrong field."""
        fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for name, value in data.items():
            if name not in fields:
                raise SpecificationError(name, value, f"one of the fields {', '.join(fields)}")
        for name, field in fields.items():
            if name not in data and field.default is dataclasses.MISSING:
                raise SpecificationError(name, None, "a value: the field is required")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in data.items()})


def require_choice(field: str, value: Any, choices: Iterable[str]) -> None:
    """Refuse `value` unless it is one of `choices`."""
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        raise SpecificationError(field, value, f"one of {', '.join(known)}")


def require_whole(field: str, value: Any, minimum: int) -> None:
    """Refuse `value` unless it is an int (no bool, no float) of at least `minimum`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise SpecificationError(field, value, f"a whole number of at least {minimum}")


def require_number(
    field: str, value: Any, *, above: float | None = None, least: float | None = None, below: float = math.inf
) -> None:
    """Refuse `value` unless it is a finite number with `above` < value, `least` <= value and value < `below`."""
    bounds = [("above", above), ("of at least", least), ("below", below if below < math.inf else None)]
    limits = " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound is not None)
    expected = f"a finite number {limits}".strip()
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise SpecificationError(field, value, expected)
    if (above is not None and value <= above) or (least is not None and value < least) or value >= below:
        raise SpecificationError(field, value, expected)


def require_flag(field: str, value: Any) -> None:
    """Refuse `value` unless it is a bool."""
    if not isinstance(value, bool):
        raise SpecificationError(field, value, "true or false")
