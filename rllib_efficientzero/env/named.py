"""Environments that go by a name of this package: the two benchmarks. Nothing here imports ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym

from rllib_efficientzero.env.atari import is_atari_id, make_atari


def named_maker(env: str) -> Callable[[Mapping[str, Any]], gym.Env] | None:
    """What makes the environment of this name from its env_config; None if the name is not one of ours."""
    if is_atari_id(env):
        return lambda env_config: make_atari({"game": env, **env_config})
    return None
