"""What a YAML file writes in the place of a value, so that trials differ in it: `{uniform: [0, 1]}`. No Ray in here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

GRID_SEARCH = "grid_search"
LISTS = (GRID_SEARCH, "choice")
"""`{grid_search: [...]}`: one trial per value; `{choice: [...]}`: one of them, drawn."""
INTERVALS = ("uniform", "loguniform", "quniform", "randint", "lograndint", "qrandint")
"""`{uniform: [low, high]}`; those with q take `[low, high, step]`. Named and meant as in `ray.tune`."""
WHOLE = ("randint", "lograndint", "qrandint")

Normalise = Callable[[Any], Any]


class BadSearchSpaceError(ValueError):
    """A search space that no value can be drawn from."""


def is_search_space(value: Any) -> bool:
    """Whether a setting is a search space rather than a value."""
    return isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in (*LISTS, *INTERVALS)


def has_search_space(value: Any) -> bool:
    """Whether a config holds a search space anywhere: in mappings and in lists, as Tune looks for them."""
    if isinstance(value, Mapping):
        return is_search_space(value) or any(has_search_space(inner) for inner in value.values())
    return isinstance(value, list) and any(has_search_space(inner) for inner in value)


def normalise_space(key: str, space: Mapping[str, Any], types: str, normalise: Normalise) -> dict[str, list[Any]]:
    """The space with every value checked as a single one would be.

    Args:
        key: of the setting, for messages.
        space: one for which `is_search_space`.
        types: the key's, such as "int|float".
        normalise: checks one value, and raises if it is wrong.

    Raises:
        BadSearchSpaceError: no value can be drawn from it.
    """
    ((kind, given),) = space.items()
    if kind in LISTS:
        if not isinstance(given, list) or not given:
            raise BadSearchSpaceError(f"{kind!r} of {key!r} must be a list of at least one value")
        return {kind: [normalise(value) for value in given]}
    length = 3 if kind.startswith("q") else 2
    names = "[low, high, step]" if length == 3 else "[low, high]"
    if not isinstance(given, list) or len(given) != length:
        raise BadSearchSpaceError(f"{kind!r} of {key!r} must be {names}")
    if kind not in WHOLE and "float" not in types.split("|") and types != "any":
        raise BadSearchSpaceError(f"{key!r} takes whole numbers: use 'randint', not {kind!r}")
    # A step is no value of the setting: only the bounds must be within its range.
    numbers = [_as_number(number, kind in WHOLE) for number in [*map(normalise, given[:2]), *given[2:]]]
    if not all(_is_number(number, kind in WHOLE) for number in numbers):
        raise BadSearchSpaceError(f"{kind!r} of {key!r} must be {names}, {'whole ' if kind in WHOLE else ''}numbers")
    low, high, *step = numbers
    if not low < high or any(number <= 0 for number in step):
        raise BadSearchSpaceError(f"{kind!r} of {key!r} must go upwards: {low} to {high}")
    if kind.startswith("log") and low <= 0:
        raise BadSearchSpaceError(f"{kind!r} of {key!r} must begin above 0, not at {low}")
    if step and not all(math.isclose(bound / step[0], round(bound / step[0])) for bound in (low, high)):
        raise BadSearchSpaceError(f"{kind!r} of {key!r} must begin and end at multiples of its step {step[0]}")
    return {kind: numbers}


def _as_number(value: Any, whole: bool) -> Any:
    """What YAML reads as a string, or as a float, as the number that is meant; anything else as it is."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    return int(value) if whole and isinstance(value, float) and value.is_integer() else value


def _is_number(value: Any, whole: bool) -> bool:
    wanted = (int,) if whole else (int, float)
    return isinstance(value, wanted) and not isinstance(value, bool) and math.isfinite(value)
