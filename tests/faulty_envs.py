"""Environments that break when told to. Importable by the processes that play them."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

SPACE = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)


class ScriptedEnv(gym.Env):
    """Observations are (episode, time) / 1000, rewards 1; `break_at` maps the step of an episode to what it returns.

    A value of `break_at` is a dict of what replaces the step's "observation", "reward" or "info", or a function that is
    called with the environment before the step (to raise, hang or crash).
    """

    def __init__(
        self,
        break_at: dict[int, Any] | None = None,
        *,
        length: int = 20,
        first_reset: Any = None,
        in_episodes: Callable[[int], bool] = lambda episode: True,
    ) -> None:
        self.observation_space, self.action_space = SPACE, gym.spaces.Discrete(3)
        self.break_at, self.length, self.in_episodes = break_at or {}, length, in_episodes
        self.first_reset = first_reset
        self.episode = -1
        self.time = 0
        self.seeds: list[int | None] = []
        self.closed = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.episode += 1
        self.time = 0
        if self.first_reset is not None and self.episode == 0:
            return self.first_reset, {}
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, Any]:
        self.time += 1
        result = {"observation": self._observation(), "reward": 1.0, "info": {}}
        told = self.break_at.get(self.time) if self.in_episodes(self.episode) else None
        if callable(told):
            told(self)
        elif told is not None:
            result |= told
        return result["observation"], result["reward"], self.time >= self.length, False, result["info"]

    def close(self) -> None:
        self.closed = True

    def _observation(self) -> np.ndarray:
        return np.array([self.episode, self.time], np.float32) / 1000


def explode(env: Any = None) -> None:
    """The error of a user's environment."""
    raise KeyError("the simulator lost its state")


def hang(env: Any = None) -> None:
    """As an environment that waits for an answer which never comes."""
    time.sleep(3600)


def crash(env: Any = None) -> None:
    """As a simulator's native code would: the process ends."""
    os.abort()


def once(marker: pathlib.Path | str, fault: Callable[[Any], None]) -> Callable[[Any], None]:
    """`fault`, the first time any process gets here; the file `marker` remembers."""

    def break_once(env: Any = None) -> None:
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        fault(env)

    return break_once
