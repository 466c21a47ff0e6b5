"""How an experiment's trials compete: scheduler, metric, concurrency; checked without ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rllib_efficientzero.cli.stopping import EPISODE_RETURN, resolve_stop
from rllib_efficientzero.config_schema import (
    ConfigError,
    KeySchema,
    Path,
    WrongTypeError,
    check_known_keys,
    nearest,
    normalise_value,
    resolve_config,
)
from rllib_efficientzero.search_space import is_search_space

SEARCH_KEYS = {"scheduler": "str|dict", "metric": "str", "mode": "str", "max_concurrent": "int"}
"""Keys of an experiment that say how its trials compete -> type."""

SCHEDULERS: dict[str, dict[str, str]] = {
    "fifo": {},
    "asha": {
        "time_attr": "str",
        "max_t": "int",
        "grace_period": "int",
        "reduction_factor": "float",
        "brackets": "int",
        "stop_last_trials": "bool",
    },
    "median": {
        "time_attr": "str",
        "grace_period": "float",
        "min_samples_required": "int",
        "min_time_slice": "int",
        "hard_stop": "bool",
    },
    "pbt": {
        "time_attr": "str",
        "perturbation_interval": "float",
        "burn_in_period": "float",
        "quantile_fraction": "float",
        "resample_probability": "float",
        "perturbation_factors": "list",
        "hyperparam_mutations": "dict",
        "synch": "bool",
    },
}
"""Scheduler -> its settings, those of Tune's class, and their types."""

MUTATIONS = "hyperparam_mutations"

ALIASES = {
    "asynchyperband": "asha",
    "async_hyperband": "asha",
    "median_stopping_rule": "median",
    "medianstopping": "median",
    "populationbasedtraining": "pbt",
}
"""Tune's own names -> ours."""


@dataclass
class SearchSettings:
    """How the trials of one experiment compete."""

    scheduler: str = "fifo"
    scheduler_settings: dict[str, Any] = field(default_factory=dict)
    metric: str = EPISODE_RETURN
    mode: str = "max"
    max_concurrent: int | None = None

    @property
    def ends_trials(self) -> bool:
        """Whether the scheduler ends trials that have not met the stop criteria."""
        return self.scheduler in ("asha", "median")


def resolve_search(values: Mapping[str, Any], schema: KeySchema | None, warnings: list[str]) -> SearchSettings:
    """Checks those values of an experiment that are in `SEARCH_KEYS`, and returns its search settings.

    Args:
        values: of the experiment.
        schema: the algorithm's, to check PBT's mutations by; None: not known yet.
        warnings: are added to.

    Raises:
        ConfigError: with the path of what is wrong.
    """
    name, settings = _scheduler(values.get("scheduler") or "fifo", schema, warnings)
    mode = values.get("mode") or "max"
    if mode not in ("max", "min"):
        raise WrongTypeError(f"'mode' must be 'max' or 'min', not {mode!r}", ("mode",))
    concurrent = values.get("max_concurrent")
    if concurrent is not None and concurrent < 1:
        raise WrongTypeError(f"'max_concurrent' must be at least 1, not {concurrent}", ("max_concurrent",))
    return SearchSettings(name, settings, _metric(values.get("metric"), warnings), mode, concurrent)


def _scheduler(
    given: str | Mapping[str, Any], schema: KeySchema | None, warnings: list[str]
) -> tuple[str, dict[str, Any]]:
    """Checks a scheduler, given as `asha` or `{name: asha, max_t: 100}`; returns its name and its settings."""
    settings: dict[str, Any] = {"name": given} if isinstance(given, str) else dict(given)
    written = settings.pop("name", None)
    if not isinstance(written, str):
        raise WrongTypeError("'scheduler' needs a name: {name: asha, max_t: 100}", ("scheduler",))
    name = ALIASES.get(written.lower(), written.lower())
    if name not in SCHEDULERS:
        near = nearest(name, [*SCHEDULERS, *ALIASES])
        hint = f"did you mean {near!r}?" if near else f"there are {', '.join(SCHEDULERS)}"
        raise WrongTypeError(f"unknown scheduler {written!r}; {hint}", ("scheduler", "name"))
    types = SCHEDULERS[name]
    try:
        check_known_keys(settings, types, f"scheduler {name!r}", private=False)
        for key, value in settings.items():
            is_mutations = key == MUTATIONS
            settings[key] = (
                resolve_mutations(value, schema, warnings) if is_mutations else normalise_value(key, value, types[key])
            )
    except ConfigError as error:
        error.path = ("scheduler", *(error.path or (key,)))
        raise
    return name, settings


def resolve_mutations(given: Any, schema: KeySchema | None, warnings: list[str]) -> dict[str, Any]:
    """Turns PBT's `hyperparam_mutations` into a config of search spaces, flat if there is a schema; a list is a choice.

    Args:
        given: as written, or as returned by an earlier call.
        schema: the algorithm's; None: not known yet, and keys and values are not checked.
        warnings: are added to.

    Raises:
        ConfigError: with the path of what is wrong, from `hyperparam_mutations` on.
    """
    spaces = _spaces(MUTATIONS, given, (MUTATIONS,))
    if schema is None:
        return spaces
    try:
        resolved = resolve_config(spaces, schema, MUTATIONS)
    except ConfigError as error:
        error.path = (MUTATIONS, *error.path)
        raise
    warnings.extend(resolved.warnings)
    return resolved.config


def _spaces(key: str, given: Any, path: Path) -> dict[str, Any]:
    """Checks a mapping of search spaces and keeps its nesting; lists become choices."""
    if not isinstance(given, Mapping) or is_search_space(given) or not given:
        raise WrongTypeError(f"{key!r} must map keys of the config to search spaces, or to lists", path)
    spaces: dict[str, Any] = {}
    for inner, space in given.items():
        if isinstance(space, list):
            spaces[inner] = {"choice": space}
        elif is_search_space(space):
            spaces[inner] = space
        elif isinstance(space, Mapping):
            spaces[inner] = _spaces(inner, space, (*path, inner))
        else:
            raise WrongTypeError(f"{MUTATIONS!r} of {inner!r} must be a search space or a list", (*path, inner))
    return spaces


def _metric(written: str | None, warnings: list[str]) -> str:
    """Returns the current name of a metric; refuses one that no result has, as in stop criteria."""
    if written is None:
        return EPISODE_RETURN
    try:
        (name,), told = resolve_stop({written: 0})
    except ConfigError as error:
        error.path = ("metric",)
        error.message = error.message.replace("stop criterion", "metric")
        raise
    warnings.extend(warning.replace("stop criterion", "metric") for warning in told)
    return name
