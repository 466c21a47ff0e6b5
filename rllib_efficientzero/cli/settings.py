"""A run's settings as plain data, to be shown and to be compared with those of an earlier run."""

from __future__ import annotations

import copy
import enum
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.tune.search.sample import Domain

from rllib_efficientzero.cli.algorithms import REFUSALS, Prepared
from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.cli.overrides import merge_deep
from rllib_efficientzero.cli.search_settings import MUTATIONS
from rllib_efficientzero.known_keys import schema_of
from rllib_efficientzero.search_space import has_search_space, is_search_space

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

_ABSENT = object()


def settings_of(config: AlgorithmConfig) -> dict[str, Any]:
    """Every setting the algorithm knows, defaults included, as plain data."""
    types = schema_of(config).types
    return {
        key.removeprefix("_"): plain(value)
        for key, value in config.to_dict().items()
        # `model` belongs to the old API stack; what is in no schema is deprecated.
        if key != "model" and key in types
    }


def plain(value: Any) -> Any:
    """A value as YAML can show it; classes and functions by their path."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted(str(plain(inner)) for inner in value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    name = getattr(value, "__qualname__", None)
    # Without addresses of objects, which differ in every process.
    return f"{value.__module__}.{name}" if name else re.sub(" at 0x[0-9a-fA-F]+", "", str(value))


def changed_settings(prepared: Prepared, saved: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the names of settings that have other values in today's experiment than in a saved trial.

    Both are compared as the algorithm reads them: with defaults for what is left out, and with mappings merged. Values
    that a trial drew from a search space, or that a scheduler mutated, are no changes.

    Args:
        prepared: today's experiment.
        saved: configs of the trials, as Tune saved them.

    Returns:
        Names in alphabetical order, inner ones as `env_config/size`.

    Raises:
        InputError: the algorithm refuses a saved config.
    """
    experiment = prepared.experiment
    today = merge_deep(prepared.param_space, experiment.search.scheduler_settings.get(MUTATIONS, {}))
    changed: set[str] = set()
    for config in saved:
        try:
            then = _read(prepared, config)
        except REFUSALS as error:
            message = " ".join(str(error).split())
            raise InputError(f"the run in {experiment.path} cannot go on: {message}", experiment.where) from error
        changed.update(_differing(then, _read(prepared, _as_drawn(today, config))))
    return sorted(changed)


def _read(prepared: Prepared, config: Mapping[str, Any]) -> dict[str, Any]:
    default = prepared.algorithm.get_default_config().copy(copy_frozen=False)
    # A copy, since RLlib resolves class paths in place.
    return settings_of(default.update_from_dict(copy.deepcopy(dict(config))))


def _as_drawn(today: Mapping[str, Any], saved: Any) -> dict[str, Any]:
    """Returns today's settings, with a saved trial's values in place of search spaces."""
    saved = saved if isinstance(saved, Mapping) else {}
    drawn: dict[str, Any] = {}
    for key, value in today.items():
        if isinstance(value, Mapping) and not is_search_space(value):
            drawn[key] = _as_drawn(value, saved.get(key))
        elif not (has_search_space(value) or isinstance(value, Domain)):
            drawn[key] = value
        elif key in saved:
            drawn[key] = saved[key]
    return drawn


def _differing(then: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yields the names, from `name` on, under which two plain values differ."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in {**then, **now}:
            path = f"{name}/{key}" if name else key
            yield from _differing(then.get(key, _ABSENT), now.get(key, _ABSENT), path)
    elif then != now:
        yield name
