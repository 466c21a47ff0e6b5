"""Sizes and variants of the networks."""

from __future__ import annotations

import dataclasses
from typing import Any

from rllib_efficientzero.config_schema import UnknownKeyError

ACTION_ENCODINGS = ("scaled", "one_hot")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of the networks; the defaults are the paper's for Atari (8,350,708 parameters with 18 actions).

    Passed to RLlib as `config.rl_module(model_config={...})` or `model_config:` in YAML.
    """

    channels: int = 64
    """Channels of the latent of pixel observations."""
    num_blocks: int = 1
    """Residual blocks in the dynamics, and as many in the prediction network and after the representation's last
    pooling. Images that are halved at most twice are not pooled, and have one block in place of the latter."""
    latent_side: int = 6
    """Images are halved as often as brings their longer side nearest to this; 96x96 gives 6x6."""
    action_encoding: str = "scaled"
    """How the dynamics of image latents encodes an action: "scaled", one plane of a / A as in the paper's code, or
    "one_hot", one plane per action, with which a small network learns the effect of actions much sooner."""
    reduced_channels: int = 16
    """Channels after the 1x1 convolutions in front of the value, policy and value prefix heads."""
    latent_size: int = 128
    """Width of the latent of vector observations."""
    mlp_hidden: tuple[int, ...] = (256,)
    """Hidden layers of the representation and dynamics of vector observations."""
    head_hidden: tuple[int, ...] = (32,)
    """Hidden layers of the value, policy and value prefix heads."""
    lstm_hidden: int = 512
    """Width of the LSTM that predicts value prefixes."""
    support_size: int = 300
    """Scalars are categorical over -support_size..support_size of the compressed axis."""
    networks: Any = None
    """For custom networks: a subclass of `rllib_efficientzero.Networks`, or its dotted path."""
    projector_hidden: int = 1024
    projector_out: int = 1024
    predictor_hidden: int = 512
    """Widths of the consistency heads (SimSiam's projector and predictor)."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Builds the config from plain values; lists, as YAML has them, become tuples.

        Raises:
            ValueError: a key is not a field, a size is not a positive integer, or the action encoding is unknown.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        for key in values:
            if key in defaults:
                continue
            error = UnknownKeyError(str(key), defaults, "model_config")
            known = "" if error.suggestion else f"; known ones are {', '.join(sorted(defaults))}"
            raise ValueError(f"{error.message}{known}")
        built: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        encoding = built.get("action_encoding", cls.action_encoding)
        if encoding not in ACTION_ENCODINGS:
            raise ValueError(f"model_config['action_encoding'] must be one of {ACTION_ENCODINGS}, not {encoding!r}")
        for key, value in built.items():
            if key in ("action_encoding", "networks"):
                continue
            takes_list = isinstance(defaults[key], tuple)
            sizes = value if takes_list and isinstance(value, tuple) else (value,)
            if takes_list != isinstance(value, tuple) or not all(_is_size(size) for size in sizes):
                kind = "a list of positive integers" if takes_list else "a positive integer"
                raise ValueError(f"model_config[{key!r}] must be {kind}, not {values[key]!r}")
        return cls(**built)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
