"""Environments that go by a name of this package: the two benchmarks. Nothing here imports ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym

from rllib_efficientzero.env.atari import AtariProtocol, is_atari_id, make_atari
from rllib_efficientzero.env.dm_control import DmcProtocol, is_dmc_id, make_dmc

Protocol = AtariProtocol | DmcProtocol
"""How an environment is played; both have `describe()`, `steps_per_decision` and `evaluation_settings`."""


def named_protocol(env: Any, env_config: Mapping[str, Any]) -> Protocol | None:
    """The protocol of an environment with a name of ours; None of any other.

    Raises:
        ValueError: `env_config` has a setting that is unknown, or a bad value.
    """
    if isinstance(env, str) and is_atari_id(env):
        return AtariProtocol.from_config({"game": env, **env_config})
    if isinstance(env, str) and is_dmc_id(env):
        return DmcProtocol.from_config({"task": env, **env_config})
    return None


def named_maker(env: str) -> Callable[[Mapping[str, Any]], gym.Env] | None:
    """What makes the environment of this name from its env_config; None if the name is not one of ours."""
    if is_atari_id(env):
        return lambda env_config: make_atari({"game": env, **env_config})
    if is_dmc_id(env):
        return lambda env_config: make_dmc({"task": env, **env_config})
    return None
