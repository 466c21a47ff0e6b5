"""Environments that have a name in this package: Atari games and DMControl tasks. Nothing here imports Ray."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym

from rllib_efficientzero.env.atari import AtariProtocol, is_atari_id, make_atari
from rllib_efficientzero.env.atari_vector import make_atari_vector
from rllib_efficientzero.env.dm_control import DmcProtocol, is_dmc_id, make_dmc

Protocol = AtariProtocol | DmcProtocol
"""How an environment is played; both have `describe()`, `steps_per_decision` and `evaluation_settings`."""


def named_protocol(env: Any, env_config: Mapping[str, Any]) -> Protocol | None:
    """The protocol of an environment that is named here; None for any other.

    Raises:
        ValueError: `env_config` has a setting that is unknown, or a bad value.
    """
    if isinstance(env, str) and is_atari_id(env):
        return AtariProtocol.from_config({"game": env, **env_config})
    if isinstance(env, str) and is_dmc_id(env):
        return DmcProtocol.from_config({"task": env, **env_config})
    return None


def named_maker(env: str) -> Callable[[Mapping[str, Any]], Any] | None:
    """Returns the function that makes the environment of this name from an env_config, or a vector of them if the
    env_config has `num_envs`; None for other names."""
    if is_atari_id(env):
        return functools.partial(_make_games, env)
    if is_dmc_id(env):
        return functools.partial(_make_task, env)
    return None


def _make_games(env: str, env_config: Mapping[str, Any]) -> gym.Env | gym.vector.VectorEnv:
    make = make_atari_vector if "num_envs" in env_config else make_atari
    return make({"game": env, **env_config})


def _make_task(env: str, env_config: Mapping[str, Any]) -> gym.Env:
    if "num_envs" in env_config:
        raise ValueError(f"{env!r} does not come as a vector: use gym_env_vectorize_mode 'sync' or 'async'.")
    return make_dmc({"task": env, **env_config})
