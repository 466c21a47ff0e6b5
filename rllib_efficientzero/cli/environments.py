"""Whether an environment exists, asked of gymnasium alone: it is found out before ray is imported."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.cli.experiment import Experiment
from rllib_efficientzero.config_schema import GRID_SEARCH, has_grid_search, nearest

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.envs.registration import EnvSpec

ATARI_EXTRA = "rllib_efficientzero[atari]"


def check_env(experiment: Experiment) -> None:
    """Raises `InputError` if the experiment names an environment that gymnasium does not know.

    Dotted class paths, and names that a module in `imports:` may register with Tune, are looked up once ray is
    imported (`algorithms.check_env`).
    """
    env = experiment.config.get("env")
    candidates = env[GRID_SEARCH] if isinstance(env, dict) and GRID_SEARCH in env else [env]
    for candidate in candidates:
        if not isinstance(candidate, str):
            if candidate is None:
                continue
            raise InputError(f"'env' must be a name, not {candidate!r}", experiment.place("env"))
        if not is_class_path(candidate) and not experiment.imports:
            problem = find_problem(candidate)
            if problem is None and experiment.run == "EfficientZero":
                problem = find_space_problem(candidate, experiment.config.get("env_config") or {})
            if problem:
                raise InputError(problem, experiment.place("env"))


def is_class_path(env: str) -> bool:
    """`package.module.Class`, which RLlib imports itself; `Name-v2.5` is none."""
    return ":" not in env and "/" not in env and "." in env and all(part.isidentifier() for part in env.split("."))


def find_problem(env: str) -> str | None:
    """What is wrong with a gymnasium id (`Name-v0`, `module:Name-v0`) or the name of a benchmark's task, or None."""
    import gymnasium

    from rllib_efficientzero.env.dm_control import is_dmc_id, task_problem

    if is_dmc_id(env):
        return task_problem(env)
    module, _, name = env.rpartition(":")
    if module:
        problem = _import_problem(module)
        if problem:
            return problem
    try:
        spec = gymnasium.spec(name)
    except gymnasium.error.Error:
        return f"unknown environment {env!r}{_hint(module, name)}"
    if not module and _is_atari(spec):
        # Known here by chance: no worker would have imported ale_py.
        return f"unknown environment {env!r}; did you mean 'ale_py:{name}'?"
    return None


def find_space_problem(env: str, env_config: Mapping[str, Any]) -> str | None:
    """Why EfficientZero cannot play an environment that exists: it cannot be made, or its spaces are not supported."""
    import gymnasium

    from rllib_efficientzero.env.named import named_maker

    if has_grid_search(env_config):
        return None
    make = named_maker(env) or (lambda settings: gymnasium.make(env, **settings))
    try:
        made = make(env_config)
    except Exception as error:
        # Whatever an environment's constructor raises: the run would end with it, minutes later.
        return f"the environment {env!r} cannot be made: {' '.join(str(error).split()) or type(error).__name__}"
    return space_problem(made)


def space_problem(env: gymnasium.Env) -> str | None:
    """Why EfficientZero cannot play an environment that was made for this question; it is closed."""
    from rllib_efficientzero.env.spaces import UnsupportedSpaceError, adapt

    try:
        adapt(env)
    except UnsupportedSpaceError as error:
        return str(error)
    finally:
        env.close()
    return None


def _import_problem(module: str) -> str | None:
    if importlib.util.find_spec(module.split(".")[0]) is None:
        cure = f"pip install '{ATARI_EXTRA}'" if module == "ale_py" else f"pip install {module}"
        return f"the environment needs the package {module!r}: {cure}"
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"the environment's module {module!r} cannot be imported: {error}"
    return None


def _hint(module: str, name: str) -> str:
    """The nearest registered id. Atari's ids are only registered by ale_py."""
    import gymnasium

    if not module and importlib.util.find_spec("ale_py") is not None:
        importlib.import_module("ale_py")
    suggestion = name if name in gymnasium.registry else nearest(name, gymnasium.registry)
    if suggestion is None:
        return ""
    prefix = "ale_py:" if _is_atari(gymnasium.registry[suggestion]) else ""
    return f"; did you mean '{prefix}{suggestion}'?"


def _is_atari(spec: EnvSpec) -> bool:
    return str(spec.entry_point).startswith("ale_py")
