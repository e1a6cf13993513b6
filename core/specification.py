"""What the specifications of networks, optimizers and schedules share: strict JSON, and errors that name the field.

A specification is a frozen dataclass whose `__post_init__` refuses what it must not hold, so that an object that exists
is a valid one, wherever it came from.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from .errors import SpecificationError

T = TypeVar("T")


class Specification:
    """Base of the frozen dataclasses that describe what to build: `from_json(to_json())` is the same again.

    Fields named in `optional` are left out of the JSON at their defaults: it is brief, and where a field comes later,
    what was written before keeps its hash.
    """

    optional: ClassVar[tuple[str, ...]] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields by name, in plain JSON types (a tuple becomes a list)."""
        return {
            field.name: _plain(getattr(self, field.name))
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if field.name not in self.optional or getattr(self, field.name) != field.default
        }

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


@dataclass(frozen=True)
class Choice:
    """Something by name with some of its numbers, the others being its defaults: {name: leaky_relu, ...} in JSON."""

    name: str
    numbers: tuple[tuple[str, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Name and numbers side by side."""
        return {"name": self.name, **dict(self.numbers)}


def require_kind(field: str, value: Any, kinds: Mapping[str, type[Any]]) -> str | Choice:
    """`value`, a name in `kinds` or a mapping of one with numbers, as a name or a Choice; it is known to be valid."""
    if isinstance(value, Choice):
        value = value.to_json()
    if not isinstance(value, Mapping):
        require_choice(field, value, kinds)
        return str(value)
    name, numbers = value.get("name"), tuple(sorted((key, number) for key, number in value.items() if key != "name"))
    require_choice(f"{field}.name", name, kinds)
    choice = Choice(str(name), numbers)
    try:
        make_kind(choice, kinds)
    except SpecificationError as error:
        raise SpecificationError(f"{field}.{error.field}", error.value, error.expected) from error
    return choice if numbers else choice.name


def make_kind(choice: str | Choice, kinds: Mapping[str, type[T]]) -> T:
    """What `choice` names, made with its numbers; SpecificationError names one that it has no use for."""
    if isinstance(choice, str):
        return kinds[choice]()
    kind: Any = kinds[choice.name]
    known = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    for name, number in choice.numbers:
        if name not in known:
            raise SpecificationError(name, number, f"nothing: {choice.name} takes {', '.join(known) or 'no numbers'}")
    made: T = kind(**dict(choice.numbers))
    return made


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
    field: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float = math.inf,
    most: float = math.inf,
) -> None:
    """Refuse `value` unless it is a finite number, `above` < value < `below` and `least` <= value <= `most`."""
    bounds = [("above", above), ("of at least", least), ("below", below), ("at most", most)]
    limits = " and ".join(f"{words} {bound:g}" for words, bound in bounds if bound not in (None, math.inf))
    expected = f"a finite number {limits}".strip()
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise SpecificationError(field, value, expected)
    too_small = (above is not None and value <= above) or (least is not None and value < least)
    if too_small or value >= below or value > most:
        raise SpecificationError(field, value, expected)


def require_flag(field: str, value: Any) -> None:
    """Refuse `value` unless it is a bool."""
    if not isinstance(value, bool):
        raise SpecificationError(field, value, "true or false")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(element) for element in value]
    return value.to_json() if isinstance(value, Specification | Choice) else value
