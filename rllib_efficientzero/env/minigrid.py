"""MiniGrid seen from above, in pixels; needs the package `minigrid`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym

EXTRA = "rllib_efficientzero[minigrid]"


def make_pixels(env_config: Mapping[str, Any]) -> gym.Env:
    """The whole grid as u8 `[tiles * tile_size, tiles * tile_size, 3]`; reward 1 - 0.9 steps / limit at the goal.

    Args:
        env_config: `name`, a gymnasium id of MiniGrid's; `tile_size`, pixels along a tile's side (default 8); other
            keys are arguments of the environment.

    Raises:
        ImportError: the package is not installed.
        ValueError: `name` is none of MiniGrid's.
    """
    try:
        # Importing registers MiniGrid's ids.
        from minigrid.wrappers import ImgObsWrapper, RGBImgObsWrapper
    except ModuleNotFoundError as error:
        raise ImportError(f"MiniGrid needs minigrid, which is not installed: run pip install '{EXTRA}'.") from error

    settings = dict(env_config)
    name, tile_size = str(settings.pop("name", None)), settings.pop("tile_size", 8)
    if not name.startswith("MiniGrid-"):  # gymnasium would import the module of `module:Name-v0`
        raise ValueError(f"env_config needs the `name` of an environment of MiniGrid's, not {name!r}")
    return ImgObsWrapper(RGBImgObsWrapper(gym.make(name, **settings), tile_size=tile_size))
