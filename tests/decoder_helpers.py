"""A tiny run whose frames can be decoded: a square that moves, the replay of it and a policy that sees it."""

from __future__ import annotations

import pathlib
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from policy_helpers import IMAGES, write_tiny_policy

from rllib_efficientzero.models.decoder import Decoder
from rllib_efficientzero.playing.imagination import write_decoder
from rllib_efficientzero.policy import Policy
from rllib_efficientzero.replay import PrioritizedReplay

WIDTH = 4
NUM_STEPS = 1200
ENV = "MovingSquare-v0"


class MovingSquare(gym.Env):
    """A bright square of 4x4 pixels; the actions move it down and to the right, around the edges. Never ends."""

    observation_space = gym.spaces.Box(0, 255, IMAGES.shape[1:], np.uint8)
    action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None:
        self._place = np.zeros(2, np.int64)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._place = self.np_random.integers(8, size=2)
        return self._frame(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._place[int(action)] += 1
        return self._frame(), 0.0, False, False, {}

    def _frame(self) -> np.ndarray:
        frame = np.zeros(self.observation_space.shape, np.uint8)
        frame[:4, :4] = 220
        return np.roll(frame, tuple(self._place), axis=(0, 1))


gym.register(ENV, entry_point=MovingSquare)


class _Chunk:
    """One episode, as the replay takes them."""

    id_, t_started, is_terminated, is_truncated = "episode", 0, False, True

    def __init__(self, observations: np.ndarray, actions: np.ndarray) -> None:
        self._observations, self._actions = observations, actions

    def __len__(self) -> int:
        return len(self._actions)

    def get_observations(self) -> np.ndarray:
        return self._observations

    def get_actions(self) -> np.ndarray:
        return self._actions

    def get_rewards(self) -> np.ndarray:
        return np.zeros(len(self), np.float32)

    def get_extra_model_outputs(self, key: str) -> np.ndarray:
        return np.zeros(len(self)) if key == "root_value" else np.full((len(self), 2), 0.5)


def write_image_checkpoint(directory: pathlib.Path) -> pathlib.Path:
    """`policy/` and `replay/` of a checkpoint, as far as a decoder needs them; returns the directory."""
    write_tiny_policy(directory / "policy", IMAGES, num_actions=2, env=ENV)
    env = MovingSquare()
    actions = np.random.default_rng(0).integers(2, size=NUM_STEPS)
    frames = [env.reset(seed=0)[0], *(env.step(action)[0] for action in actions)]
    replay = PrioritizedReplay(2 * NUM_STEPS, frame_stack=2, unroll_steps=5, td_steps=0, seed=0)
    replay.add([_Chunk(np.stack(frames), actions)])
    replay.save(directory / "replay")
    return directory


def write_random_decoder(file: pathlib.Path, policy: Policy) -> pathlib.Path:
    """One that has learned nothing, with weights so large that no two latents look alike; returns the file."""
    torch.manual_seed(1)
    decoder = Decoder(policy.network.latent_shape, (3, 8, 8), WIDTH)
    with torch.no_grad():
        for weight in decoder.parameters():
            if weight.ndim > 1:
                weight.mul_(8)
    write_decoder(file, decoder, policy, WIDTH)
    return file
