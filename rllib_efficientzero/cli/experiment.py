"""Reads experiment files in the schema of the old `rllib train`, and checks them. Nothing here imports ray."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rllib_efficientzero import known_keys
from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.cli.loggers import LoggerSettings, resolve_loggers
from rllib_efficientzero.cli.overrides import merge_deep
from rllib_efficientzero.cli.search_settings import SEARCH_KEYS, SearchSettings, resolve_search
from rllib_efficientzero.cli.stopping import resolve_stop
from rllib_efficientzero.cli.yaml_source import FilePlace, load_yaml, read_text
from rllib_efficientzero.config_schema import (
    ConfigError,
    KeySchema,
    Path,
    ResolvedConfig,
    UnknownKeyError,
    check_known_keys,
    nearest,
    normalise_value,
    resolve_config,
)

if TYPE_CHECKING:
    import gymnasium as gym

DEFAULT_STORAGE = "~/ray_results"

EXPERIMENT_KEYS = {
    "run": "str",
    "env": "str",
    "stop": "dict",
    "config": "dict",
    "num_samples": "int",
    "storage_path": "str",
    "local_dir": "str",
    "checkpoint_config": "dict",
    "checkpoint_freq": "int",
    "checkpoint_at_end": "bool",
    "keep_checkpoints_num": "int",
    "checkpoint_score_attr": "str",
    "max_failures": "int",
    "time_budget_s": "float",
    "restore": "str",
    "resources_per_trial": "dict|str",
    "imports": "list",
    "loggers": "list",
    **SEARCH_KEYS,
}
"""Key of an experiment -> its type."""

CHECKPOINT_KEYS = {
    "checkpoint_frequency": "int",
    "checkpoint_at_end": "bool",
    "num_to_keep": "int",
    "checkpoint_score_attribute": "str",
    "checkpoint_score_order": "str",
}
"""Key of `checkpoint_config` -> its type: the arguments of `ray.tune.CheckpointConfig`."""

_OLD_CHECKPOINT_KEYS = {
    "checkpoint_freq": "checkpoint_frequency",
    "checkpoint_at_end": "checkpoint_at_end",
    "keep_checkpoints_num": "num_to_keep",
}
_SMALLEST = {
    "max_failures": -1,
    "time_budget_s": 0,
    "checkpoint_freq": 0,
    "checkpoint_frequency": 0,
    "keep_checkpoints_num": 1,
    "num_to_keep": 1,
}
_OFFLINE_KEYS = {"input", "input_read_method"}


@dataclass
class Experiment:
    """One experiment, ready for Tune."""

    name: str
    run: str | type
    """An algorithm's registered name, a dotted class path, or (from a Python file) the class."""
    config: dict[str, Any]
    stop: dict[str, float] = field(default_factory=dict)
    num_samples: int = 1
    storage_path: str = DEFAULT_STORAGE
    checkpoint: dict[str, Any] = field(default_factory=dict)
    """Arguments of `ray.tune.CheckpointConfig`."""
    max_failures: int = 0
    time_budget_s: float | None = None
    restore: str | None = None
    imports: list[str] = field(default_factory=list)
    search: SearchSettings = field(default_factory=SearchSettings)
    loggers: list[LoggerSettings] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    where: str = ""
    """`file:line` of the experiment, for mistakes that only show once ray is imported."""
    places: dict[str, str] = field(default_factory=dict)
    """Config key (`key.inner` within a mapping; `run`, `imports`) -> `file:line` or the option that set it."""
    spaces: dict[Any, tuple[gym.Space, gym.Space]] = field(default_factory=dict)
    """Environment -> its observation and action spaces as EfficientZero sees them; filled in by `env_check`."""

    @property
    def path(self) -> pathlib.Path | str:
        """Where the experiment's results go: a directory, or a URI such as `s3://bucket/name`."""
        if "://" in self.storage_path:
            return f"{self.storage_path.rstrip('/')}/{self.name}"
        return pathlib.Path(self.storage_path).expanduser().absolute() / self.name

    def place(self, key: str) -> str:
        """Where a config key was set, or where the experiment begins."""
        return self.places.get(key, self.where)


@dataclass
class Overrides:
    """Settings of the command line, which override those of every experiment."""

    config: dict[str, Any] = field(default_factory=dict)
    stop: dict[str, Any] = field(default_factory=dict)
    env: str | None = None
    storage_path: str | None = None
    checkpoint: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    local_mode: bool = False
    scheduler: dict[str, Any] | None = None
    loggers: list[Any] = field(default_factory=list)


class Place(Protocol):
    """Says where a part of an experiment was written: `file:line`, or an option."""

    def __call__(self, *path: str | int) -> str:
        """Returns the place of a path below the experiment; without a path, that of the experiment itself."""
        ...


def load_experiments(file: pathlib.Path, overrides: Overrides) -> list[Experiment]:
    """Reads a YAML file and checks all that can be checked without ray.

    Raises:
        InputError: With `file:line`, at the first mistake.
    """
    located = load_yaml(read_text(file), str(file))
    if not isinstance(located.data, Mapping):
        raise InputError("the file must map experiment names to experiments: `name: {run: ..., env: ...}`", f"{file}:1")
    misplaced = [key for key in located.data if key in EXPERIMENT_KEYS]
    if misplaced:
        where = f"{file}:{located.line((misplaced[0],))}"
        raise InputError(f"{misplaced[0]!r} belongs into an experiment; put a name above it and indent it", where)
    return [
        parse_experiment(name, value, FilePlace(str(file), located, name), overrides)
        for name, value in located.data.items()
    ]


def parse_experiment(name: Any, spec: Any, place: Place, overrides: Overrides) -> Experiment:
    """Checks one experiment and applies the command line's overrides to it.

    Raises:
        InputError: at the first mistake, with its place.
    """
    if not isinstance(name, str) or not name or name.startswith(".") or os.sep in name:
        raise InputError(f"experiment name {name!r} must be a string that can name a directory", place())
    if not isinstance(spec, Mapping):
        raise InputError(f"experiment {name!r} must be a mapping with at least `run` and `env`", place())
    values = _check_spec(name, spec, place)
    warnings: list[str] = []
    run = _algorithm(values, place)
    schema = known_keys.load().get(run)
    config, places = _config(run, schema, values, place, overrides, warnings)
    _check_env(name, run, config, place)
    return Experiment(
        name=name,
        run=run,
        config=config,
        stop=_stop(values, place, overrides, warnings),
        num_samples=_num_samples(values, place),
        storage_path=_storage_path(values, overrides, warnings),
        checkpoint=_checkpoint(values, place, overrides, warnings),
        max_failures=values.get("max_failures") or 0,
        time_budget_s=values.get("time_budget_s"),
        restore=values.get("restore"),
        imports=_imports(values, place),
        search=_search(values, schema, place, overrides, warnings),
        loggers=_loggers(name, values, place, overrides),
        warnings=warnings,
        where=place(),
        places=places | _places(values, place, overrides),
    )


def _check_spec(name: str, spec: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """Checks the keys of an experiment, and returns its values converted to the keys' types."""
    try:
        check_known_keys(spec, EXPERIMENT_KEYS, f"experiment {name!r}", private=False)
    except UnknownKeyError as error:
        in_config = any(error.key in schema.names for schema in known_keys.load().values())
        hint = f"unknown key {error.key!r} in experiment {name!r}; it belongs under 'config'"
        raise InputError(hint if in_config else error.message, place(*error.path)) from error
    return _typed(spec, EXPERIMENT_KEYS, place, ())


def _typed(spec: Mapping[str, Any], types: Mapping[str, str], place: Place, prefix: Path) -> dict[str, Any]:
    """Returns the values of a mapping, checked and converted to their keys' types."""
    values: dict[str, Any] = {}
    for key, value in spec.items():
        try:
            values[key] = normalise_value(key, value, types[key])
        except ConfigError as error:
            raise InputError(error.message, place(*prefix, key)) from error
        if isinstance(values[key], int | float) and values[key] < _SMALLEST.get(key, float("-inf")):
            raise InputError(f"{key!r} must be at least {_SMALLEST[key]}, not {value}", place(*prefix, key))
    return values


def _algorithm(values: Mapping[str, Any], place: Place) -> str:
    """The checked `run`."""
    names = known_keys.algorithm_names()
    run = values.get("run")
    if not run:
        raise InputError(f"'run' is missing; it names the algorithm: {', '.join(names)}", place())
    if run in names or "." in run:
        return str(run)
    suggestion = nearest(run, names)
    hint = f"did you mean {suggestion!r}?" if suggestion else f"there are {', '.join(names)}, or a dotted class path"
    raise InputError(f"unknown algorithm {run!r}; {hint}", place("run"))


def _config(
    run: str,
    schema: KeySchema | None,
    values: Mapping[str, Any],
    place: Place,
    overrides: Overrides,
    warnings: list[str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Merges the config of file and command line; returns it flat, with the place where each key was set."""
    layers: list[tuple[dict[str, Any], str]] = [(values.get("config") or {}, "")]
    if values.get("env"):
        layers.append(({"env": values["env"]}, "env"))
    layers.append((overrides.config, "--config"))
    layers.append(({} if overrides.seed is None else {"seed": overrides.seed}, "--seed"))
    layers.append(({} if overrides.env is None else {"env": overrides.env}, "--env"))
    if overrides.local_mode:
        single = {"num_env_runners": 0, "num_learners": 0, "evaluation_num_env_runners": 0}
        layers.append((single, "--local-mode"))
    config: dict[str, Any] = {}
    places: dict[str, str] = {}
    for layer, option in layers:
        try:
            resolved = _resolve_layer(layer, run, schema)
        except ConfigError as error:
            where = _where(option, place, error.path)
            raise InputError(_explain(error, run), where) from error
        warnings.extend(resolved.warnings)
        config = merge_deep(config, resolved.config)
        places.update({key: _where(option, place, path) for key, path in _origins(resolved)})
    return config, places


def _origins(resolved: ResolvedConfig) -> Iterator[tuple[str, Path]]:
    """Yields (key, path) of every setting, and (key.inner, path) of every key inside a mapping."""
    for key, path in resolved.origins.items():
        yield key, path
        value = resolved.config.get(key)
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", (*path, inner)) for inner in value)


def _resolve_layer(layer: dict[str, Any], run: str, schema: KeySchema | None) -> ResolvedConfig:
    """Flattens and checks one layer; leaves it as it is for a user's own class, which is not imported yet."""
    if schema is None:
        return ResolvedConfig(dict(layer), [], {key: (key,) for key in layer})
    return resolve_config(layer, schema, f"the config of {run}")


def _where(option: str, place: Place, path: Path) -> str:
    if option.startswith("--"):
        return option
    return place("env") if option == "env" else place("config", *path)


def _explain(error: ConfigError, run: str) -> str:
    """Returns the error's message; for an unknown key, it names the algorithms that have this key."""
    if not isinstance(error, UnknownKeyError) or error.suggestion:
        return error.message
    schemas = known_keys.load()
    owners = [name for name in known_keys.algorithm_names() if name != run and error.key in schemas[name].names]
    return f"{error.message}; it is a key of {', '.join(owners)}" if owners else error.message


def _check_env(name: str, run: str, config: Mapping[str, Any], place: Place) -> None:
    if config.get("env") is None and not _OFFLINE_KEYS & set(config):
        raise InputError(f"experiment {name!r} has no environment: add `env: CartPole-v1`, say, or --env", place())


def _stop(values: Mapping[str, Any], place: Place, overrides: Overrides, warnings: list[str]) -> dict[str, float]:
    """Returns the file's stop criteria, overridden by `--stop`."""
    try:
        stop, told = resolve_stop(values.get("stop") or {})
    except ConfigError as error:
        raise InputError(error.message, place("stop", *error.path)) from error
    try:
        over, told_over = resolve_stop(overrides.stop)
    except ConfigError as error:
        raise InputError(error.message, "--stop") from error
    warnings.extend(told + told_over)
    return stop | over


def _num_samples(values: Mapping[str, Any], place: Place) -> int:
    number = values.get("num_samples")
    if number is not None and number < 1:
        raise InputError(f"'num_samples' must be at least 1, not {number}", place("num_samples"))
    return number or 1


def _storage_path(values: Mapping[str, Any], overrides: Overrides, warnings: list[str]) -> str:
    if values.get("local_dir"):
        warnings.append("'local_dir' is now called 'storage_path'")
    return overrides.storage_path or values.get("storage_path") or values.get("local_dir") or DEFAULT_STORAGE


def _checkpoint(values: Mapping[str, Any], place: Place, overrides: Overrides, warnings: list[str]) -> dict[str, Any]:
    """Arguments of `CheckpointConfig`: the old flat keys, then `checkpoint_config`, then the options."""
    given = values.get("checkpoint_config") or {}
    try:
        check_known_keys(given, CHECKPOINT_KEYS, "checkpoint_config", private=False)
    except UnknownKeyError as error:
        raise InputError(error.message, place("checkpoint_config", *error.path)) from error
    settings = {new: values[old] for old, new in _OLD_CHECKPOINT_KEYS.items() if values.get(old) is not None}
    settings.update(checkpoint_score(values.get("checkpoint_score_attr")))
    settings.update(_typed(given, CHECKPOINT_KEYS, place, ("checkpoint_config",)))
    if settings.get("checkpoint_score_order", "max") not in {"min", "max"}:
        where = place("checkpoint_config", "checkpoint_score_order")
        raise InputError("'checkpoint_score_order' must be 'min' or 'max'", where)
    if values.get("resources_per_trial") is not None:
        warnings.append("'resources_per_trial' is ignored: RLlib asks for what the config needs")
    return {"checkpoint_at_end": True, **settings, **overrides.checkpoint}


def checkpoint_score(written: str | None) -> dict[str, str]:
    """Turns `checkpoint_score_attr` into arguments of `CheckpointConfig`; its prefix `min-` means less is better."""
    if not written:
        return {}
    order = "min" if written.startswith("min-") else "max"
    return {"checkpoint_score_attribute": written.removeprefix("min-"), "checkpoint_score_order": order}


def _search(
    values: Mapping[str, Any],
    schema: KeySchema | None,
    place: Place,
    overrides: Overrides,
    warnings: list[str],
) -> SearchSettings:
    over = {} if overrides.scheduler is None else {"scheduler": overrides.scheduler}
    try:
        return resolve_search({**values, **over}, schema, warnings)
    except ConfigError as error:
        of_option = over and error.path[:1] == ("scheduler",)
        raise InputError(error.message, "--scheduler" if of_option else place(*error.path)) from error


def _places(values: Mapping[str, Any], place: Place, overrides: Overrides) -> dict[str, str]:
    """Returns the places of those keys that are checked later, after the experiment is read."""
    places = {key: place(key) for key in ("run", "imports", "restore", "loggers", "scheduler", "storage_path")}
    if values.get("local_dir") and not values.get("storage_path"):
        places["storage_path"] = place("local_dir")
    if overrides.storage_path:
        places["storage_path"] = "--storage-path"
    return places if overrides.scheduler is None else places | {"scheduler": "--scheduler"}


def _loggers(name: str, values: Mapping[str, Any], place: Place, overrides: Overrides) -> list[LoggerSettings]:
    """Returns the file's loggers and those of the options."""
    written = values.get("loggers") or []
    try:
        return resolve_loggers([*written, *overrides.loggers], name)
    except ConfigError as error:
        index = error.path[0]
        of_option = isinstance(index, int) and index >= len(written)
        raise InputError(error.message, "--wandb-*" if of_option else place("loggers", *error.path)) from error


def _imports(values: Mapping[str, Any], place: Place) -> list[str]:
    modules = values.get("imports") or []
    for i, module in enumerate(modules):
        if not isinstance(module, str):
            raise InputError(f"'imports' takes module names, not {module!r}", place("imports", i))
    return modules
