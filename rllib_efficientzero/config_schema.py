"""Converts a config with nested or flat keys to the flat dict that RLlib takes, and finds mistakes in it.

RLlib's own `AlgorithmConfig.update_from_dict` sets any attribute it is given: a typo, or a group such as
`env_runners: {num_env_runners: 2}`, is accepted and has no effect. All functions here are pure and need neither ray nor
torch, so that the command line can check a file without delay and `EfficientZeroConfig` can share the rules.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rllib_efficientzero.search_space import (
    BadSearchSpaceError,
    has_search_space,
    is_search_space,
    normalise_space,
)

Path = tuple[str | int, ...]
"""The place of a value in a nested config: keys and list indices from the top."""


RENAMED_KEYS = {
    "num_workers": "num_env_runners",
    "num_rollout_workers": "num_env_runners",
    "num_envs_per_worker": "num_envs_per_env_runner",
    "num_cpus_per_worker": "num_cpus_per_env_runner",
    "num_gpus_per_worker": "num_gpus_per_env_runner",
    "custom_resources_per_worker": "custom_resources_per_env_runner",
    "num_learner_workers": "num_learners",
    "num_gpus_per_learner_worker": "num_gpus_per_learner",
    "num_cpus_per_learner_worker": "num_cpus_per_learner",
    "num_gpus": "num_gpus_per_learner",
    "sgd_minibatch_size": "minibatch_size",
    "num_sgd_iter": "num_epochs",
    "evaluation_num_workers": "evaluation_num_env_runners",
    "min_time_s_per_reporting": "min_time_s_per_iteration",
    "min_iter_time_s": "min_time_s_per_iteration",
    "metrics_smoothing_episodes": "metrics_num_episodes_for_smoothing",
}
"""Names of the old API stack -> present names with the same meaning; translated with a warning."""

MULTI_AGENT_KEYS = frozenset(
    {"policies", "policy_map_capacity", "policy_mapping_fn", "policies_to_train", "policy_states_are_swappable"}
    | {"observation_fn", "count_steps_by"}
)
"""Keys that only take effect as arguments of `AlgorithmConfig.multi_agent()`, which `update_from_dict` calls only with
the content of the key `multiagent`."""

RANGES: tuple[tuple[re.Pattern[str], float, float], ...] = (
    (re.compile(r"(evaluation_)?num_\w+"), 0, float("inf")),
    (re.compile(r"gamma|lambda|tau"), 0, 1),
    (re.compile(r"lr|\w+_lr"), 0, float("inf")),
    (re.compile(r"(train_|mini)?batch_size\w*|minibatch_size|train_batch_size_per_learner"), 1, float("inf")),
)
"""(keys, smallest, largest) of values whose mistakes RLlib would only notice in a worker."""


class ConfigError(ValueError):
    """A config is wrong at `path`; the message is one sentence that does not name the place."""

    def __init__(self, message: str, path: Path = ()) -> None:
        super().__init__(message)
        self.message = message
        self.path = path


class UnknownKeyError(ConfigError):
    """A key is unknown; `suggestion` is the nearest known one."""

    def __init__(self, key: str, known: Iterable[str], where: str = "config", path: Path = ()) -> None:
        self.key = key
        self.suggestion = nearest(key, known)
        hint = f"; did you mean {self.suggestion!r}?" if self.suggestion else ""
        super().__init__(f"unknown key {key!r} in {where}{hint}", path or (key,))


class WrongTypeError(ConfigError):
    """A value does not have a type or range that its key accepts."""


@dataclass(frozen=True)
class KeySchema:
    """The keys of one algorithm's config."""

    types: Mapping[str, str]
    """Key -> accepted types joined by "|": int, float, bool, str, list, dict, class (a dotted path), any."""
    groups: Mapping[str, Collection[str]] = field(default_factory=dict)
    """Config method -> the arguments it takes: the nested form of a config."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Method argument -> key under which the config stores it, if the two differ."""

    @property
    def names(self) -> set[str]:
        """Every name that is allowed at the top level of a config."""
        return {*self.types, *self.groups, *self.attributes, "multiagent"}


@dataclass
class ResolvedConfig:
    """A flat config for `update_from_dict`, and what the user should be told about it."""

    config: dict[str, Any]
    warnings: list[str]
    origins: dict[str, Path]
    """Flat key -> where the user wrote it."""


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that was most likely meant by a misspelt word: fewest edits first, then the most similar."""
    lowered = word.lower()
    choices = list(candidates)
    limit = 1 + len(word) // 5
    distances = ((edit_distance(lowered, choice.lower(), limit), choice) for choice in choices)
    close = [pair for pair in distances if pair[0] <= limit]
    if close:
        return min(close, key=lambda pair: (pair[0], -difflib.SequenceMatcher(None, word, pair[1]).ratio()))[1]
    similar = difflib.get_close_matches(word, choices, n=1, cutoff=0.7)
    return similar[0] if similar else None


def edit_distance(first: str, second: str, limit: int = 1000) -> int:
    """The number of insertions, deletions, substitutions and swaps of neighbours that turn one word into the other.

    If it exceeds `limit`, any larger number may be returned, so that the search can end early.
    """
    if abs(len(first) - len(second)) > limit:
        return limit + 1
    before: list[int] = []
    previous = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        current = [i]
        for j, other in enumerate(second, start=1):
            cost = min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (letter != other))
            swapped = i > 1 and j > 1 and letter == second[j - 2] and first[i - 2] == other
            current.append(min(cost, before[j - 2] + 1) if swapped else cost)
        if min(*current, *previous) > limit:
            return limit + 1
        before, previous = previous, current
    return previous[-1]


def check_known_keys(
    config: Mapping[str, Any], known: Collection[str], where: str = "config", private: bool = True
) -> None:
    """Raises `UnknownKeyError`, naming the nearest key, at the first key that is not in `known`.

    Args:
        config: A flat config.
        known: The keys it may have.
        where: What the config is called in the message.
        private: Lets keys that begin with "_" pass; Tune adds `__trial_info__`, and configs carry `_model_config`.
    """
    for key in config:
        if key not in known and not (private and str(key).startswith("_")):
            raise UnknownKeyError(str(key), known, where)


def resolve_config(config: Mapping[str, Any], schema: KeySchema, where: str = "config") -> ResolvedConfig:
    """Checks a config as a user writes it and converts it to the flat form that `update_from_dict` understands.

    Raises:
        ConfigError: With `path` as the place in `config` that is wrong.
    """
    resolved = ResolvedConfig({}, [], {})
    for written, value, path in _entries(config, schema.groups):
        key = _current_name(written, schema, resolved.warnings, where, path)
        try:
            value = _resolve_value(key, value, schema, resolved.warnings)
        except ConfigError as error:
            error.path = path + error.path
            raise
        if key in resolved.config and resolved.config[key] != value:
            raise ConfigError(f"{key!r} is given twice: {resolved.config[key]!r} and {value!r}", path)
        resolved.config[key] = value
        resolved.origins[key] = path
    resolved.config = _gather_multi_agent(resolved.config)
    return resolved


def normalise_env(env: str) -> str:
    """Adds gymnasium's module prefix to Atari ids: it imports `ale_py`, which registers them, in every worker."""
    return f"ale_py:{env}" if env.startswith("ALE/") else env


def normalise_value(key: str, value: Any, types: str) -> Any:
    """Converts a value to its key's type, as YAML reads `1e-4` as a string, and `1` as an int even if a float is meant.

    Raises:
        WrongTypeError: The value has a wrong type or range.
    """
    accepted = set(types.split("|"))
    if "any" in accepted or value is None:
        return value
    if is_search_space(value):
        try:
            return normalise_space(key, value, types, functools.partial(normalise_value, key, types=types))
        except BadSearchSpaceError as error:
            raise WrongTypeError(str(error)) from error
    if _has_type(value, accepted):
        result = float(value) if isinstance(value, int) and accepted & {"int", "float"} == {"float"} else value
        return _in_range(key, result)
    number = _as_number(value, accepted)
    if number is None:
        raise WrongTypeError(f"{key!r} must be {describe_types(types)}, not {_describe(value)}")
    return _in_range(key, number)


def describe_types(types: str) -> str:
    """Describes types such as `int|float` in words."""
    names = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "str": "a string",
        "list": "a list",
        "dict": "a mapping",
        "class": "the dotted path of a class or function",
    }
    accepted = types.split("|")
    if "float" in accepted and "int" in accepted:
        accepted.remove("int")
    return " or ".join(names[name] for name in accepted)


def _entries(
    config: Mapping[str, Any], groups: Mapping[str, Collection[str]]
) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """Yields (key, value, path) of every setting, including those inside groups."""
    for key, value in config.items():
        if key in groups and isinstance(value, Mapping):
            for inner, setting in value.items():
                if inner not in groups[key] and RENAMED_KEYS.get(inner) not in groups[key]:
                    raise UnknownKeyError(str(inner), groups[key], f"group {key!r}", (key, inner))
                yield inner, setting, (key, inner)
        else:
            yield key, value, (key,)


def _current_name(written: str, schema: KeySchema, warnings: list[str], where: str, path: Path) -> str:
    """The key under which the config stores the setting that the user wrote."""
    name = written
    if written in RENAMED_KEYS:
        name = RENAMED_KEYS[written]
        if name not in schema.names:
            raise UnknownKeyError(written, schema.names, where, path)
        warnings.append(f"{written!r} is now called {name!r}")
    name = schema.attributes.get(name, name)
    if name in schema.types or name == "multiagent":
        return name
    if name in schema.groups:
        raise WrongTypeError(f"{written!r} is a group of settings and must be a mapping", path)
    raise UnknownKeyError(written, schema.names, where, path)


def _resolve_value(key: str, value: Any, schema: KeySchema, warnings: list[str]) -> Any:
    """Checks and converts the value of one setting: its type and range, or its nested config."""
    if key == "env" and isinstance(value, str):
        return normalise_env(value)
    if key == "evaluation_config" and isinstance(value, Mapping):
        # It is itself a partial config, and RLlib would accept it with any typo.
        inner = resolve_config(value, schema, "evaluation_config")
        warnings.extend(inner.warnings)
        return inner.config
    return _check_inner_spaces(key, normalise_value(key, value, schema.types.get(key, "any")))


def _gather_multi_agent(config: dict[str, Any]) -> dict[str, Any]:
    """Moves the multi-agent keys into `multiagent`, from which `update_from_dict` passes them on."""
    gathered = {key: value for key, value in config.items() if key in MULTI_AGENT_KEYS}
    if not gathered:
        return config
    rest = {key: value for key, value in config.items() if key not in gathered}
    return {**rest, "multiagent": {**rest.get("multiagent", {}), **gathered}}


def _check_inner_spaces(key: str, value: Any) -> Any:
    """Checks the form of search spaces inside a setting. Their values are not checked, as their types are not known."""
    if not has_search_space(value):
        return value
    if is_search_space(value):
        try:
            return normalise_space(key, value, "any", functools.partial(_check_inner_spaces, key))
        except BadSearchSpaceError as error:
            raise WrongTypeError(str(error)) from error
    if isinstance(value, Mapping):
        return {inner: _check_inner_spaces(inner, setting) for inner, setting in value.items()}
    return [_check_inner_spaces(key, element) for element in value]


def _has_type(value: Any, accepted: set[str]) -> bool:
    """Whether the key accepts the value's type without conversion."""
    if isinstance(value, bool):
        return "bool" in accepted
    if isinstance(value, int):
        return bool(accepted & {"int", "float"})
    if isinstance(value, float):
        return "float" in accepted
    if isinstance(value, str):
        return "str" in accepted or ("class" in accepted and "." in value)
    if isinstance(value, Mapping):
        return "dict" in accepted
    if isinstance(value, list | tuple):
        return "list" in accepted
    # Not a YAML value but a Python object, such as a class, which cannot be checked here.
    return True


def _as_number(value: Any, accepted: set[str]) -> int | float | None:
    """Converts `"1e-4"` to a float, and `"1e5"` and `2.0` to an int, if the key accepts them; else returns None."""
    if isinstance(value, bool) or not isinstance(value, str | float) or not accepted & {"int", "float"}:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    if "int" in accepted and number.is_integer():
        return int(number)
    return number if "float" in accepted else None


def _in_range(key: str, value: Any) -> Any:
    """Returns the value, and raises if it is a number outside the key's range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    for pattern, smallest, largest in RANGES:
        if pattern.fullmatch(key) and not smallest <= value <= largest:
            bounds = f"at least {smallest}" if largest == float("inf") else f"between {smallest} and {largest}"
            raise WrongTypeError(f"{key!r} must be {bounds}, not {value}")
    return value


def _describe(value: Any) -> str:
    """Describes a value for a message: its kind and its abbreviated content."""
    text = repr(value)
    shown = text if len(text) <= 40 else f"{text[:37]}..."
    kind = {bool: "the boolean", str: "the string", dict: "the mapping", list: "the list"}.get(type(value), "the value")
    return f"{kind} {str(value).lower() if isinstance(value, bool) else shown}"
