"""A policy acts from its two files as the network it was written from."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from policy_helpers import IMAGES, SEARCH, VECTORS, write_tiny_policy

from rllib_efficientzero.checkpoint import CheckpointError
from rllib_efficientzero.mcts import search
from rllib_efficientzero.models import observation_planes
from rllib_efficientzero.models.inference import InferenceNetwork
from rllib_efficientzero.policy import load_policy


@pytest.mark.parametrize("space", [VECTORS, IMAGES])
def test_acts_like_the_network_it_was_written_from(tmp_path: pathlib.Path, space: gym.spaces.Box) -> None:
    network = write_tiny_policy(tmp_path, space)
    policy = load_policy(tmp_path)
    assert policy.observation_space == space
    assert policy.action_space == gym.spaces.Discrete(3)
    assert policy.search_config == SEARCH
    frames = np.random.default_rng(0).integers(0, 255, (5, *space.shape)).astype(space.dtype)
    legal = np.array([[1, 1, 0]] * 5, dtype=bool)
    found = policy.act(frames, legal_actions=legal)
    expected = search(
        InferenceNetwork(network),
        observation_planes(torch.from_numpy(frames)),
        SEARCH,
        legal_actions=legal,
        rng=np.random.default_rng(0),
        explore=False,
    )
    np.testing.assert_array_equal(found.visit_counts, expected.visit_counts)
    np.testing.assert_array_equal(found.root_value, expected.root_value)
    assert (found.action < 2).all()
    np.testing.assert_array_equal(policy.act(frames, legal_actions=legal).action, found.action)


def test_a_checkpoint_directory_will_do(tmp_path: pathlib.Path) -> None:
    write_tiny_policy(tmp_path / "checkpoint_000000" / "policy")
    assert load_policy(str(tmp_path / "checkpoint_000000")).description["num_updates"] == 1


def test_ray_is_not_imported() -> None:
    code = "import sys, rllib_efficientzero.policy; sys.exit(any(name.split('.')[0] == 'ray' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_policy_here(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match="There is no policy in"):
        load_policy(tmp_path)
    with pytest.raises(CheckpointError, match="There is no policy in"):
        load_policy(tmp_path / "nowhere")


def test_weights_of_another_network(tmp_path: pathlib.Path) -> None:
    write_tiny_policy(tmp_path / "a")
    write_tiny_policy(tmp_path / "b", num_actions=4)
    shutil.copy(tmp_path / "b" / "policy.safetensors", tmp_path / "a" / "policy.safetensors")
    with pytest.raises(CheckpointError, match=r"policy\.safetensors is incomplete: it has \d+ bytes instead of"):
        load_policy(tmp_path / "a")
