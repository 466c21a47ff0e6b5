"""MiniGrid seen from above as pixels, registered as `minigrid-pixels`; `env_config: {name: ..., tile_size: 8}`.

Named in a YAML file's `imports`, so that every process of a run knows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from ray.tune.registry import register_env


def make(env_config: Mapping[str, Any]) -> gym.Env:
    """u8`[tiles * tile_size, tiles * tile_size, 3]` observations of the whole grid; reward 1 - 0.9 steps / limit."""
    # Importing registers MiniGrid's ids; only these benchmarks need the package.
    from minigrid.wrappers import ImgObsWrapper, RGBImgObsWrapper

    return ImgObsWrapper(RGBImgObsWrapper(gym.make(env_config["name"]), tile_size=env_config.get("tile_size", 8)))


register_env("minigrid-pixels", make)
