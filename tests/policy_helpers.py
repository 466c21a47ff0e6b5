"""A tiny policy on disk, without any run."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rllib_efficientzero.checkpoint.policy_files import read_description, write_policy
from rllib_efficientzero.checkpoint.spaces import space_to_json
from rllib_efficientzero.mcts import SearchConfig
from rllib_efficientzero.models import EfficientZeroNetwork, ModelConfig, Networks, actions_of, build_network
from rllib_efficientzero.models.catalog import path_of
from rllib_efficientzero.policy import load_policy

VECTORS = gym.spaces.Box(-np.inf, np.inf, (2, 4), np.float32)
IMAGES = gym.spaces.Box(0, 255, (2, 8, 8, 3), np.uint8)
SIZES = ModelConfig(
    channels=4,
    latent_side=4,
    reduced_channels=2,
    latent_size=8,
    mlp_hidden=(8,),
    head_hidden=(8,),
    lstm_hidden=8,
    support_size=10,
    projector_hidden=8,
    projector_out=8,
    predictor_hidden=8,
)
SEARCH = SearchConfig(num_simulations=4)


def write_tiny_policy(
    directory: pathlib.Path,
    space: gym.spaces.Box = VECTORS,
    num_actions: int = 3,
    env: str | None = None,
    action_space: gym.Space | None = None,
    networks: type[Networks] | None = None,
    **description: Any,
) -> EfficientZeroNetwork:
    """Writes `policy.json`, with further entries, and `policy.safetensors`; returns the network that they hold."""
    torch.manual_seed(0)
    actions = action_space or gym.spaces.Discrete(num_actions)
    sizes = dataclasses.replace(SIZES, networks=networks)
    network = build_network(space.shape, actions_of(actions), sizes).eval()
    model = {
        key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(SIZES).items()
    }
    if networks is not None:
        model["networks"] = path_of(networks)
    write_policy(
        directory,
        network.state_dict(),
        observation_space=space_to_json(space),
        action_space=space_to_json(actions),
        model=model,
        search=dataclasses.asdict(SEARCH),
        mixed_precision=False,
        num_updates=1,
        frame_stack=space.shape[0],
        protocol={"env": env},
        **description,
    )
    return network


def write_pendulum_policy(directory: pathlib.Path) -> EfficientZeroNetwork:
    """One whose actions are sampled."""
    observations = gym.spaces.Box(-np.inf, np.inf, (2, 3), np.float32)
    actions = gym.spaces.Box(-1, 1, (1,), np.float32)
    return write_tiny_policy(directory, observations, env="Pendulum-v1", action_space=actions)


def write_policy_with_other_weights(directory: pathlib.Path) -> str:
    """Over the one that is there; returns the weights' hash."""
    state = load_policy(directory).network.state_dict()
    weights = {name: tensor + 0.01 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    content = read_description(directory).content
    told = {key: content[key] for key in content if key not in ("format_version", "versions", "weights", "sha256")}
    write_policy(directory, weights, **told)
    return read_description(directory).content["weights"]["sha256"]
