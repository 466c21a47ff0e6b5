"""What targets should be, as loops over whole episodes."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass
class Episode:
    rewards: np.ndarray  # [T]
    values: np.ndarray  # [T+1] what a known value function says of each observation
    terminated: bool

    def __len__(self) -> int:
        return len(self.rewards)


def random_episode(rng: np.random.Generator, length: int, *, terminated: bool) -> Episode:
    return Episode(rng.normal(size=length), rng.normal(scale=10.0, size=length + 1), terminated)


def n_step_target(episode: Episode, i: int, horizon: int, gamma: float) -> float:
    """z_i: up to `horizon` rewards from time i on, then the value of the observation there."""
    total, discount = 0.0, 1.0
    for j in range(horizon):
        if i + j == len(episode):
            return total + (0.0 if episode.terminated else discount * episode.values[i + j])
        total += discount * episode.rewards[i + j]
        discount *= gamma
    if i + horizon == len(episode) and episode.terminated:
        return total
    return total + discount * episode.values[i + horizon]


def value_prefix(episode: Episode, t: int, k: int, horizon: int) -> float:
    """Sum of the rewards since the last multiple of `horizon` up to the step from t + k to t + k + 1."""
    total = 0.0
    for j in range(k + 1):
        if j % horizon == 0:
            total = 0.0
        if t + j < len(episode):
            total += episode.rewards[t + j]
    return total
