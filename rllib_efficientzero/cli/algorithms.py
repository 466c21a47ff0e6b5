"""Turns a checked experiment into RLlib's classes, and makes the last checks before it runs, which need ray.

RLlib's own algorithms take the flat config as it is. Dotted paths of classes and functions, some of which they would
only store as strings, are imported here. `run: EfficientZero` goes through the same steps.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from rllib_efficientzero import known_keys, metrics
from rllib_efficientzero.cli.announce import budget
from rllib_efficientzero.cli.env_check import check_before_training
from rllib_efficientzero.cli.environments import find_problem
from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.cli.experiment import Experiment
from rllib_efficientzero.cli.search_settings import MUTATIONS, resolve_mutations
from rllib_efficientzero.config_schema import ConfigError, resolve_config
from rllib_efficientzero.env.dotted import is_dotted_path
from rllib_efficientzero.search_space import has_search_space

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

MAX_VALIDATED_VARIANTS = 32
MAX_RISKY_CHECKPOINTS = 2
"""With PBT, keeping this many checkpoints or fewer is risky; Ray's own warning of it is easily overlooked."""

MODEL_CONFIG = "_model_config"
"""The key under which a config keeps what the user calls `model_config`."""

REFUSALS = (ValueError, TypeError, AttributeError, KeyError, AssertionError, NotImplementedError, ImportError)
"""What RLlib's configs raise when they refuse a setting."""


@dataclass
class Prepared:
    """An experiment with its algorithm class and config, validated together."""

    experiment: Experiment
    algorithm: type[Algorithm]
    param_space: dict[str, Any]
    """The flat config, with search spaces as the file writes them; `schedulers.tune_space` turns them into Tune's."""
    config: AlgorithmConfig
    """The config of the first trial."""
    resources: list[dict[str, float]]
    """What one trial asks of the cluster, bundle by bundle."""


def prepare(experiment: Experiment, is_cluster: bool = False) -> Prepared:
    """Imports what the experiment names, and validates the configs that its grid searches span (the first 32).

    If the config has a budget, the experiment gets a further stop criterion: the run also ends once the budget is spent
    and learned from, since further iterations would do nothing.

    Args:
        experiment: Checked as far as it can be without ray.
        is_cluster: Whether the trials may run on other machines than this one.

    Raises:
        InputError: An import, the environment or a setting is wrong.
    """
    for module in experiment.imports:
        _import(module, experiment.place("imports"), "'imports'")
    algorithm = _algorithm_class(experiment)
    default = algorithm.get_default_config()
    config = experiment.config
    if isinstance(experiment.run, str) and experiment.run not in known_keys.algorithm_names():
        config = _check_own_class(experiment, default)
    param_space = _import_classes(config, experiment, known_keys.schema_of(default).types)
    _check_scheduler(experiment, param_space)
    _resolve_env(param_space, experiment)
    if experiment.run == "EfficientZero":
        _check_spaces(param_space, experiment, is_cluster)
    variants = [
        _build(algorithm, values, experiment) for values in islice(_variants(param_space), MAX_VALIDATED_VARIANTS)
    ]
    for variant in variants:
        _check_networks(variant, experiment)
    if budget(variants[0]):
        experiment.stop.setdefault(metrics.TRAINING_DONE, 1.0)
    request = algorithm.default_resource_request(variants[0])
    return Prepared(experiment, algorithm, param_space, variants[0], list(request.bundles))


def total_resources(bundles: list[dict[str, float]]) -> dict[str, float]:
    """CPUs, GPUs and the like of all bundles together."""
    total: dict[str, float] = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0) + amount
    return total


def _import(module: str, where: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{what}: cannot import {module!r}: {error}", where) from error


def _import_attribute(path: str, where: str, what: str) -> Any:
    """The object at `package.module.name`."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(_import(module, where, what), name)
    except AttributeError as error:
        raise InputError(f"{what}: the module {module!r} has no {name!r}", where) from error


def _algorithm_class(experiment: Experiment) -> type[Algorithm]:
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.algorithms.registry import ALGORITHMS

    run = experiment.run
    if isinstance(run, type):
        return run
    if run in ALGORITHMS:
        try:
            return ALGORITHMS[run]()[0]
        except ImportError as error:
            raise InputError(f"'run': {run} cannot be imported: {error}", experiment.place("run")) from error
    path = run if "." in run else f"rllib_efficientzero.{run}"
    cls = _import_attribute(path, experiment.place("run"), "'run'")
    if not (isinstance(cls, type) and issubclass(cls, Algorithm)):
        raise InputError(f"'run': {path!r} is no subclass of RLlib's Algorithm", experiment.place("run"))
    return cls


def _check_own_class(experiment: Experiment, default: AlgorithmConfig) -> dict[str, Any]:
    """Checks the config of a user's own class, whose keys are known only once it is imported; returns it resolved."""
    schema = known_keys.schema_of(default)
    scheduler = experiment.search.scheduler_settings
    try:
        resolved = resolve_config(experiment.config, schema, f"the config of {experiment.run}")
        if MUTATIONS in scheduler:
            scheduler[MUTATIONS] = resolve_mutations(scheduler[MUTATIONS], schema, experiment.warnings)
    except ConfigError as error:
        key = "scheduler" if error.path[0] == MUTATIONS else str(error.path[0])
        raise InputError(error.message, experiment.place(key)) from error
    experiment.warnings.extend(resolved.warnings)
    return resolved.config


def _check_scheduler(experiment: Experiment, param_space: Mapping[str, Any]) -> None:
    """Refuses what Tune would refuse once Ray runs; warns if checkpoints may be deleted before PBT copies them."""
    from rllib_efficientzero.cli.schedulers import make_scheduler
    from rllib_efficientzero.cli.signals import Stop

    try:
        make_scheduler(experiment.search, param_space, Stop())
    except REFUSALS as error:
        raise InputError(" ".join(str(error).split()), experiment.place("scheduler")) from error
    kept = experiment.checkpoint.get("num_to_keep")
    if experiment.search.scheduler == "pbt" and kept is not None and kept <= MAX_RISKY_CHECKPOINTS:
        experiment.warnings.append(
            f"with 'num_to_keep: {kept}' a checkpoint may be deleted before 'pbt' has copied it; keep 4, say"
        )


def _import_classes(config: Mapping[str, Any], experiment: Experiment, types: Mapping[str, str]) -> dict[str, Any]:
    """Replaces dotted paths by the classes or functions that they name, for keys that take no other strings.

    RLlib resolves `callbacks` itself but would store, say, `env_runner_cls: pkg.mod.Class` as a string.
    """
    resolved = dict(config)
    for key, value in config.items():
        accepted = types.get(key, "any").split("|")
        if isinstance(value, str) and "class" in accepted and "str" not in accepted:
            resolved[key] = _import_attribute(value, experiment.place(key), repr(key))
    return resolved


def _resolve_env(param_space: dict[str, Any], experiment: Experiment) -> None:
    """Resolves environments that `env_check.check_env` could not: dotted paths, and names that `imports` register."""
    from ray.tune.registry import ENV_CREATOR, _global_registry, register_env

    from rllib_efficientzero.env.dm_control import is_dmc_id
    from rllib_efficientzero.env.named import named_maker

    env = param_space.get("env")
    if not isinstance(env, str) or _global_registry.contains(ENV_CREATOR, env):
        return
    if is_dotted_path(env):
        # The new API stack would ask gymnasium for an id of this name.
        found = _import_attribute(env, experiment.place("env"), "'env'")
        if isinstance(found, type):
            param_space["env"] = found
        else:
            # RLlib takes functions only by a registered name.
            register_env(env, found)
    elif problem := find_problem(env):
        raise InputError(problem, experiment.place("env"))
    elif is_dmc_id(env) and experiment.run != "EfficientZero":
        # Other algorithms would ask gymnasium for it.
        register_env(env, named_maker(env))


def _check_spaces(param_space: Mapping[str, Any], experiment: Experiment, is_cluster: bool) -> None:
    """Plays an environment that is a class or registered with Tune; gymnasium's were checked before ray was imported.

    See `check_before_training`.
    """
    from ray.rllib.env.env_context import EnvContext
    from ray.tune.registry import ENV_CREATOR, _global_registry

    env, env_config = param_space.get("env"), param_space.get("env_config") or {}
    is_registered = isinstance(env, str) and _global_registry.contains(ENV_CREATOR, env)
    make = _global_registry.get(ENV_CREATOR, env) if is_registered else env
    if not callable(make) or has_search_space(env_config):
        return
    try:
        made = make(EnvContext(env_config, worker_index=0))
    except Exception as error:
        problem = f"the environment {env!r} cannot be made here: {type(error).__name__}: {error}"
        if not is_cluster:
            raise InputError(problem, experiment.place("env")) from error
        # Only a warning: other machines of the cluster may have what this one lacks.
        experiment.warnings.append(problem)
        return
    check_before_training(experiment, env, lambda: made)


def _variants(param_space: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every config the grid searches span, with one draw from every other search space."""
    import numpy as np
    from ray.tune.search.variant_generator import generate_variants

    from rllib_efficientzero.cli.schedulers import tune_space

    for _, variant in generate_variants(tune_space(param_space), random_state=np.random.RandomState(0)):
        yield variant


def _build(algorithm: type[Algorithm], values: Mapping[str, Any], experiment: Experiment) -> AlgorithmConfig:
    """One trial's config as `Algorithm.__init__` will build it, validated."""
    config = algorithm.get_default_config().copy(copy_frozen=False)
    try:
        config.update_from_dict(dict(values))
        config.validate()
    except REFUSALS as error:
        message = " ".join(str(error).partition("To suppress all validation errors")[0].split()) or type(error).__name__
        raise InputError(f"{experiment.run}: {message}", _blamed(message, values, experiment)) from error
    return config


def _check_networks(config: AlgorithmConfig, experiment: Experiment) -> None:
    """Tries out custom networks of EfficientZero; RLlib's own configs have no `check_networks`."""
    check = getattr(config, "check_networks", None)
    if not callable(check):
        return
    try:
        check(experiment.spaces.get(config.env))
    except ValueError as error:
        places = experiment.places
        where = places.get(f"{MODEL_CONFIG}.networks") or experiment.place(MODEL_CONFIG)
        raise InputError(" ".join(str(error).split()), where) from error


def _blamed(message: str, values: Mapping[str, Any], experiment: Experiment) -> str:
    """Returns the place of the first setting that a refusal's message names, else that of the experiment."""
    named = [key for key in values if key in experiment.places and key in message.replace("`", " ").split()]
    if named:
        return experiment.place(min(named, key=message.find))
    if "model_config" not in message:
        return experiment.where
    inner = {repr(str(key)): f"{MODEL_CONFIG}.{key}" for key in experiment.config.get(MODEL_CONFIG) or {}}
    told = [word for word in inner if word in message]
    return experiment.place(inner[min(told, key=message.find)] if told else MODEL_CONFIG)
