"""An environment whose frames carry a number of its settings, and EfficientZero that tells which its replay holds."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rllib_efficientzero import EfficientZero

EPISODE = 5


class Tagged(gym.Env):
    """Every frame and every reward is `config["tag"]`; episodes have five steps."""

    observation_space = gym.spaces.Box(0.0, 10.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, config: Any = None) -> None:
        self.tag = float((config or {}).get("tag", 0))
        self.time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._frame(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return self._frame(), self.tag, self.time >= EPISODE, False, {}

    def _frame(self) -> np.ndarray:
        return np.full(2, self.tag, np.float32)


class TellingEfficientZero(EfficientZero):
    """Adds to every result how many positions the replay holds, by their rewards."""

    def step(self) -> dict[str, Any]:
        result = super().step()
        rewards = [episode.column("rewards") for episode in self.local_replay_buffer._episodes.values()]
        tags, counts = np.unique(np.concatenate(rewards), return_counts=True)
        return {**result, "replay_tags": {f"{tag:g}": int(count) for tag, count in zip(tags, counts, strict=True)}}
