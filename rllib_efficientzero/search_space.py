"""What a YAML file writes in the place of a value, so that trials differ in it: `{uniform: [0, 1]}`. No Ray in here."""

from __future__ import annotations

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
    """Whether a config holds a search space anywhere."""
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
    bounds = [normalise(value) for value in given[:2]]
    if kind in WHOLE:
        bounds = [int(bound) if isinstance(bound, float) and bound.is_integer() else bound for bound in bounds]
    step = given[2:]
    wanted = (int,) if kind in WHOLE else (int, float)
    if not all(isinstance(number, wanted) and not isinstance(number, bool) for number in [*bounds, *step]):
        raise BadSearchSpaceError(f"{kind!r} of {key!r} must be {names}, {'whole ' if kind in WHOLE else ''}numbers")
    if not bounds[0] < bounds[1] or any(number <= 0 for number in step):
        raise BadSearchSpaceError(f"{kind!r} of {key!r} must go upwards: {bounds[0]} to {bounds[1]}")
    if kind.startswith("log") and bounds[0] <= 0:
        raise BadSearchSpaceError(f"{kind!r} of {key!r} must begin above 0, not at {bounds[0]}")
    return {kind: [*bounds, *step]}
