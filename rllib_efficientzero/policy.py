"""A trained policy without Ray and without pickle: what serves, evaluates or exports one loads it here.

>>> from rllib_efficientzero.policy import load_policy
>>> policy = load_policy("results/pong-ez/.../checkpoint_000010")  # doctest: +SKIP
>>> action = policy.act(stacked_frames).action  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch

from rllib_efficientzero.checkpoint.manifest import CheckpointError
from rllib_efficientzero.checkpoint.policy_files import PolicyFiles, read_description, read_weights
from rllib_efficientzero.checkpoint.spaces import space_from_json
from rllib_efficientzero.mcts import SearchConfig, Searcher, SearchResult
from rllib_efficientzero.models import EfficientZeroNetwork, ModelConfig, build_network, observation_planes
from rllib_efficientzero.models.inference import InferenceNetwork

MAX_SIZE = 1 << 20
"""Widest layer, and most simulations, that a policy file may ask for."""
MAX_LAYERS = 32
OBSERVATIONS = "observations"


@dataclasses.dataclass
class Policy:
    """A network and how to search with it."""

    network: EfficientZeroNetwork
    """in eval mode"""
    search_config: SearchConfig
    observation_space: gym.Space
    """of stacked observations: Box `[S, H, W, C]` or `[S, D]`, or a Dict of these and an action mask"""
    action_space: gym.spaces.Discrete
    mixed_precision: bool
    description: dict[str, Any]
    """`policy.json`: environment, versions, number of updates, ..."""

    def __post_init__(self) -> None:
        self._inference = InferenceNetwork(self.network, mixed_precision=self.mixed_precision)
        self._searcher = Searcher(self.search_config)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def act(
        self,
        frames: np.ndarray,
        *,
        legal_actions: np.ndarray | None = None,
        rng: np.random.Generator | None = None,
        explore: bool = False,
        temperature: float = 0.0,
    ) -> SearchResult:
        """Searches from B observations.

        Args:
            frames: `[B, S, H, W, C]` or `[B, S, D]`, stacked raw observations, oldest first.
            legal_actions: `[B, A]` bool; None means that all are legal.
            rng: breaks ties and draws noise; None: a fixed seed, so that equal calls act alike.
            explore: add noise at the roots.
            temperature: of the sampled action; 0 takes the best.
        """
        planes = observation_planes(torch.as_tensor(frames, device=self.device))
        return self._searcher.search(
            self._inference,
            self._inference.initial_inference(planes),
            legal_actions=legal_actions,
            rng=np.random.default_rng(0) if rng is None else rng,
            explore=explore,
            temperature=temperature,
        )


def load_policy(path: str | pathlib.Path, *, device: str | torch.device = "cpu") -> Policy:
    """The policy of a checkpoint, or of a directory with `policy.json` and `policy.safetensors`.

    The files need not be trusted.

    Raises:
        CheckpointError: a file is missing, damaged, from a later format, or does not describe a policy.
    """
    files = read_description(pathlib.Path(path))
    try:
        network = _network_without_memory(files)
        search_config = _search_config(files.content["search"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{files.path} does not describe a policy: {error!r}.") from error
    weights = read_weights(files, network.state_dict())
    network.load_state_dict(weights, assign=True)
    # Only now: spaces of large observations take memory.
    try:
        observation_space = space_from_json(files.content["observation_space"])
        action_space = space_from_json(files.content["action_space"])
        mixed_precision = bool(files.content["mixed_precision"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{files.path} does not describe a policy: {error!r}.") from error
    return Policy(
        network=network.to(device).eval().requires_grad_(False),
        search_config=search_config,
        observation_space=observation_space,
        action_space=cast(gym.spaces.Discrete, action_space),
        mixed_precision=mixed_precision,
        description=files.content,
    )


def _network_without_memory(files: PolicyFiles) -> EfficientZeroNetwork:
    """The network on torch's meta device: names and shapes only, however large the file says that they are."""
    described = files.content["observation_space"]
    if described["type"] == "Dict":
        described = described["spaces"][OBSERVATIONS]
    shape = tuple(_limited(size, 1 << 27) for size in described["shape"])
    num_actions = _limited(files.content["action_space"]["n"], MAX_SIZE)
    sizes = files.content["model"]
    config = ModelConfig.from_dict(sizes)
    for name, value in dataclasses.asdict(config).items():
        for size in value if isinstance(value, tuple) else (value,):
            if not isinstance(size, str):
                _limited(size, MAX_LAYERS if name == "num_blocks" else MAX_SIZE)
        if isinstance(value, tuple):
            _limited(max(1, len(value)), MAX_LAYERS)
    with torch.device("meta"):
        return build_network(shape, num_actions, config)


def _search_config(values: dict[str, Any]) -> SearchConfig:
    """One thread, whatever the machine had that trained: results do not depend on it."""
    config = SearchConfig(**{**values, "num_threads": 1})
    _limited(config.num_simulations, MAX_SIZE)
    Searcher(config)  # refuses unknown policies
    return config


def _limited(size: Any, largest: int) -> int:
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= largest:
        raise ValueError(f"{str(size)[:100]} is not a size between 1 and {largest}")
    return size
