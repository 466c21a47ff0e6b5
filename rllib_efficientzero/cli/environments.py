"""Finds out from gymnasium alone, before ray is imported, whether an environment exists."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.config_schema import nearest

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

    from rllib_efficientzero.playing import PlayError

ATARI_EXTRA = "rllib_efficientzero[atari]"


def find_problem(env: str) -> str | None:
    """Says what is wrong with a gymnasium id (`Name-v0`, `module:Name-v0`) or a benchmark task's name, if anything."""
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
        # Known here only because something imported ale_py, which no worker would do.
        return f"unknown environment {env!r}; did you mean 'ale_py:{name}'?"
    return None


def cannot_be_played(error: PlayError, env: str | None) -> InputError:
    """Turns a `PlayError` into an `InputError`; for an unknown id of `--env`, suggests what may have been meant."""
    import gymnasium

    is_unknown = env is not None and isinstance(error.__cause__, gymnasium.error.UnregisteredEnv)
    problem = find_problem(str(env)) if is_unknown else None
    return InputError(problem or str(error), "--env" if env else "")


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
    """Suggests the nearest registered id; imports ale_py first if it is installed, since it registers Atari's ids."""
    import gymnasium

    if not module and importlib.util.find_spec("ale_py") is not None:
        importlib.import_module("ale_py")
    suggestions = _atari_ids() | {name: name for name, spec in gymnasium.registry.items() if not _is_atari(spec)}
    if name in gymnasium.registry and name not in suggestions:
        return f"; did you mean 'ale_py:{name}'?"  # an older Atari id that lacks only the module
    meant = name if name in suggestions else nearest(name, suggestions)
    if meant is None:
        return "" if module else f"; if a module registers it, write 'module:{name}'"
    return f"; did you mean {suggestions[meant]!r}?"


def _atari_ids() -> dict[str, str]:
    """Id or plain game name -> the id to write; only of games that are played by the protocol of Atari 100k."""
    import gymnasium

    from rllib_efficientzero.env.atari import ATARI_100K_GAMES, AtariProtocol, is_atari_id

    ids = {name: f"ale_py:{name}" for name in gymnasium.registry if is_atari_id(name)}
    if ids:
        ids |= {game: f"ale_py:{AtariProtocol(game).env_id}" for game in ATARI_100K_GAMES}
    return ids


def _is_atari(spec: EnvSpec) -> bool:
    return str(spec.entry_point).startswith("ale_py")
