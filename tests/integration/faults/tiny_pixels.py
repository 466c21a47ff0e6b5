"""A small image environment whose every step draws from its generator."""

from __future__ import annotations

import pathlib
import time
from typing import Any

import gymnasium as gym
import numpy as np

SIDE = 8


class TinyPixels(gym.Env):
    """A dot wanders; an action pushes it; reward 1 on the middle column. Ends at random, or after 40 steps."""

    observation_space = gym.spaces.Box(0, 255, (SIDE, SIDE, 1), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, config: Any = None) -> None:
        self.row = self.column = self.time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        self.row, self.column = self.np_random.integers(SIDE, size=2)
        return self._draw(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.time += 1
        self.row = (self.row + self.np_random.integers(-1, 2)) % SIDE
        self.column = (self.column + int(action) - 1) % SIDE
        reward = float(self.column == SIDE // 2)
        return self._draw(), reward, bool(self.np_random.random() < 0.02), self.time >= 40, {}

    def _draw(self) -> np.ndarray:
        image = np.zeros((SIDE, SIDE, 1), np.uint8)
        image[self.row, self.column] = 255
        return image


class Unsaveable(TinyPixels):
    """The same with an attribute that nothing can pickle, as one with a handle into C has."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.handle = (x for x in ())


class Hanging(TinyPixels):
    """The same; EnvRunner 1 has one that hangs while there is a file `hang` in the directory given, and says so by
    a file `hangs`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.directory = pathlib.Path(config["directory"])
        self.may_hang = config.worker_index == 1

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        while self.may_hang and (self.directory / "hang").exists():
            (self.directory / "hangs").touch()
            time.sleep(0.1)
        return super().step(action)
