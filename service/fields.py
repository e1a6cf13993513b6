"""The kinds of fields that a job spec is made of: each checks one value, and says what would be right.

A union of types would be refused with one message a member; here a field that takes `auto` or a number has one message
that says so. What a later part brings is refused as `not_supported_yet`, never accepted and ignored.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from core.errors import SpecificationError
from core.specification import Choice, require_kind

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,127}")
NAME_RULE = "1 to 128 letters, digits, blanks, dots, underscores or hyphens, the first a letter or digit"
AUTO = "auto"
LEAST_WEIGHT, MOST_WEIGHT = 1e-6, 1e6  # of a class: within it, float32 holds the products with row weights


class Section(BaseModel):
    """A part of the spec."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def wrong(expected: str, value: Any) -> PydanticCustomError:
    """The refusal of one value."""
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # a number of more than 4,300 digits, lists in lists in lists
        shown = f"too large a {type(value).__name__} to show"
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return PydanticCustomError("invalid", "expected {expected}; got {shown}", {"expected": expected, "shown": shown})


def not_yet(what: str) -> PydanticCustomError:
    """The refusal of what is not there yet."""
    return PydanticCustomError("not_supported_yet", "{what} is not supported yet", {"what": what})


def _field(check: Callable[[Any], Any], schema: Mapping[str, Any]) -> Any:
    return PlainValidator(check), WithJsonSchema(dict(schema))


def whole(least: int, most: int = 2**53, auto: bool = False, null: bool = False) -> Any:
    """A whole number within bounds; also `auto`, or null, where said."""
    expected = " or ".join(["auto"] * auto + ["null"] * null + [f"a whole number between {least} and {most}"])

    def check(value: Any) -> Any:
        if (auto and value == AUTO) or (null and value is None):
            return value
        return as_whole(value, least, most, expected)

    return _field(check, {"type": "integer", "minimum": least, "maximum": most, "description": expected})


def as_whole(value: Any, least: int, most: int, expected: str) -> int:
    """`value` as a whole number within bounds, 3.0 too; else the error that names what was `expected`."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= most:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise wrong(expected, value)
    return value


def _fits_float(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the floats
        return False


def number(
    least: float, below: float | None = None, above: bool = False, null: bool = False, at_most: float | None = None
) -> Any:
    """A finite number of at least `least` (above it, where said), below `below`; also null where said."""
    expected = " or ".join(
        ["null"] * null
        + [
            f"a finite number {'above' if above else 'of at least'} {least:g}"
            + ("" if below is None else f" and below {below:g}")
            + ("" if at_most is None else f" and at most {at_most:g}")
        ]
    )

    def check(value: Any) -> Any:
        if null and value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not _fits_float(value):
            raise wrong(expected, value)
        too_large = (below is not None and value >= below) or (at_most is not None and value > at_most)
        if value < least or (above and value == least) or too_large:
            raise wrong(expected, value)
        return float(value)

    return _field(check, {"type": "number", "description": expected})


def choice(*allowed: str, later: tuple[str, ...] = (), null: bool = False) -> Any:
    """One of some words, or null where said; those of `later` are not supported yet."""

    def check(value: Any) -> Any:
        if null and value is None:
            return None
        if isinstance(value, str) and value in later:
            raise not_yet(repr(value))
        if not isinstance(value, str) or value not in allowed:
            raise wrong(f"one of {', '.join(['null'] * null + [*allowed])}", value)
        return value

    return _field(check, {"type": "string", "enum": list(allowed)})


def kind(kinds: Mapping[str, type[Any]], auto: bool = False, null: bool = False) -> Any:
    """The name of one of the engine's `kinds`, or a mapping of it with its numbers, which the engine checks."""
    words = ["null"] * null + ["auto"] * auto + [*kinds]
    expected = f"one of {', '.join(words)}, or a mapping of a name with its numbers"

    def check(value: Any) -> Any:
        if (auto and value == AUTO) or (null and value is None):
            return value
        if not isinstance(value, dict):
            if not isinstance(value, str) or value not in kinds:
                raise wrong(expected, value)
            return value
        for key, held in value.items():
            if not isinstance(key, str):
                raise wrong("a mapping of texts to numbers", value)
            if key != "name" and not (isinstance(held, int | float) and _fits_float(held)):
                raise at(key, wrong("a finite number", held), held)
        numbers = {key: float(held) for key, held in value.items() if key != "name" and not isinstance(held, bool)}
        try:
            found = require_kind("", value | numbers, kinds)
        except SpecificationError as error:
            raise at(error.field.lstrip("."), wrong(error.expected, error.value), error.value) from error
        return found.to_json() if isinstance(found, Choice) else found

    return _field(check, {"type": ["string", "object"], "description": expected})


def at(field: str, problem: PydanticCustomError, value: Any) -> ValidationError:
    """The refusal of what lies under `field` of a value."""
    return ValidationError.from_exception_data("spec", [{"type": problem, "loc": (field,), "input": value}])


def weights_by_label() -> Any:
    """null, balanced, or a mapping of labels to weights. YAML's numbers and booleans as labels become JSON's texts."""
    expected = f"null, balanced, or a mapping of classes to weights, numbers of {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}"

    def check(value: Any) -> Any:
        if value is None or value == "balanced":
            return value
        if not isinstance(value, dict) or not value:
            raise wrong(expected, value)
        found: dict[str, float] = {}
        for label, weight in value.items():
            text = str(label).lower() if isinstance(label, bool) else str(label)
            if not isinstance(label, str | int | float) or text in found:
                raise wrong(expected, value)
            is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not is_number or not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
                raise at(text[:80], wrong(f"a number of {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}", weight), weight)
            found[text] = float(weight)
        return found

    return _field(check, {"type": ["string", "object", "null"], "description": expected})


def only(default: Any, what: str) -> Any:
    """A field of a later part: nothing but its default."""

    def check(value: Any) -> Any:
        if value != default or isinstance(value, bool) != isinstance(default, bool):
            raise not_yet(f"{what} other than {default!r}")
        return value

    return _field(check, {"const": default, "description": f"{what}: not supported yet, so nothing but the default"})


def text(null: bool = False, longest: int = 1000) -> Any:
    """A text that is not empty and holds no control characters."""
    expected = " or ".join(["null"] * null + [f"a text of 1 to {longest} characters"])

    def check(value: Any) -> Any:
        if null and value is None:
            return None
        if not isinstance(value, str) or not 1 <= len(value) <= longest or not value.isprintable():
            raise wrong(expected, value)
        return value

    return _field(check, {"type": "string", "description": expected})


def identifier(null: bool = False) -> Any:
    """A name as the service, its files and MLflow can bear it."""

    def check(value: Any) -> Any:
        if null and value is None:
            return None
        if not isinstance(value, str) or NAME.fullmatch(value) is None:
            raise wrong(NAME_RULE, value)
        return value

    return _field(check, {"type": "string", "pattern": NAME.pattern})


def flag(null: bool = False) -> Any:
    """true or false, or null where said."""

    def check(value: Any) -> Any:
        if null and value is None:
            return None
        if not isinstance(value, bool):
            raise wrong("null, true or false" if null else "true or false", value)
        return value

    return _field(check, {"type": "boolean"})


Seed = Annotated[int, *whole(0, 2**32 - 1)]
