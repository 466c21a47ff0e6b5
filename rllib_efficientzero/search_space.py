"""Search spaces in YAML, such as `{uniform: [0, 1]}`, from which each trial gets its value. Does not import Ray."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

GRID_SEARCH = "grid_search"
LISTS = (GRID_SEARCH, "choice")
"""`{grid_search: [...]}`: one trial per value; `{choice: [...]}`: a value drawn from the list."""
INTERVALS = ("uniform", "loguniform", "quniform", "randint", "lograndint", "qrandint")
"""`{uniform: [low, high]}`; those with q take `[low, high, step]`. Names and meanings are those of `ray.tune`."""
WHOLE = ("randint", "lograndint", "qrandint")

Normalise = Callable[[Any], Any]


class BadSearchSpaceError(ValueError):
    """No valid value can be drawn from a search space."""


def is_search_space(value: Any) -> bool:
    """Whether a setting is a search space rather than a value."""
    return isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in (*LISTS, *INTERVALS)


def has_search_space(value: Any) -> bool:
    """Whether a config has a search space anywhere inside mappings and lists, where Tune looks for them."""
    if isinstance(value, Mapping):
        return is_search_space(value) or any(has_search_space(inner) for inner in value.values())
    return isinstance(value, list) and any(has_search_space(inner) for inner in value)


def normalise_space(key: str, space: Mapping[str, Any], types: str, normalise: Normalise) -> dict[str, list[Any]]:
    """Checks a search space and returns it with every value checked and converted as a single value would be.

    Args:
        key: of the setting, for messages.
        space: a search space, see `is_search_space`.
        types: the key's types, such as "int|float".
        normalise: checks and converts one value; raises if it is wrong.

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
    # The step is not a value of the setting: only the bounds must be within its range.
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
    """Converts strings, and floats if `whole`, to the numbers that are meant; returns anything else as it is."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    return int(value) if whole and isinstance(value, float) and value.is_integer() else value


def _is_number(value: Any, whole: bool) -> bool:
    wanted = (int,) if whole else (int, float)
    return isinstance(value, wanted) and not isinstance(value, bool) and math.isfinite(value)
