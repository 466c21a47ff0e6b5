"""EfficientZero (Ye et al., NeurIPS 2021) for Ray RLlib.

    >>> from rllib_efficientzero import EfficientZeroConfig  # doctest: +SKIP
    >>> config = EfficientZeroConfig().environment("ale_py:ALE/Pong-v5")  # doctest: +SKIP
    >>> config.build_algo().train()  # doctest: +SKIP

The names below are imported on first use, because importing Ray takes seconds, which would slow down `rllib --help`.
Using the first two registers "EfficientZero" with Ray Tune.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rllib_efficientzero.efficientzero import EfficientZero
    from rllib_efficientzero.efficientzero_config import EfficientZeroConfig
    from rllib_efficientzero.models.catalog import Networks

__version__ = "0.1.0"
__all__ = ["EfficientZero", "EfficientZeroConfig", "Networks", "__version__"]

_HOMES = {
    "EfficientZero": "rllib_efficientzero.efficientzero",
    "EfficientZeroConfig": "rllib_efficientzero.efficientzero_config",
    "Networks": "rllib_efficientzero.models.catalog",
}


if "MUJOCO_GL" in os.environ:
    # RLlib will import parts of dm_control, which load OpenGL.
    _rendering = importlib.import_module("rllib_efficientzero.env.rendering")
    if _rendering.must_load_triton_first():
        _rendering.load_triton_first()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
