"""Episodes made of random numbers, cut into chunks as an EnvRunner would deliver them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

NUM_ACTIONS = 4


@dataclass
class FakeChunk:
    """The getters of RLlib's `SingleAgentEpisode` that the replay reads, over plain arrays."""

    id_: str
    t_started: int
    observations: Any
    actions: np.ndarray
    rewards: np.ndarray
    extra: dict[str, np.ndarray]
    is_terminated: bool = False
    is_truncated: bool = False

    def __len__(self) -> int:
        return len(self.actions)

    def get_observations(self) -> Any:
        return self.observations

    def get_actions(self) -> np.ndarray:
        return self.actions

    def get_rewards(self) -> np.ndarray:
        return self.rewards

    def get_extra_model_outputs(self, key: str) -> np.ndarray:
        return self.extra[key]

    def part(self, low: int, high: int) -> FakeChunk:
        """Steps low .. high-1, done only where the whole is."""
        at_end = high == len(self)
        frames = slice(low, high + 1)
        observations = self.observations
        return replace(
            self,
            t_started=low,
            observations={k: v[frames] for k, v in observations.items()}
            if isinstance(observations, dict)
            else observations[frames],
            actions=self.actions[low:high],
            rewards=self.rewards[low:high],
            extra={key: value[low:high] for key, value in self.extra.items()},
            is_terminated=self.is_terminated and at_end,
            is_truncated=self.is_truncated and at_end,
        )


def random_episode(
    rng: np.random.Generator,
    length: int,
    *,
    id_: str = "e",
    end: str = "ongoing",
    shape: tuple[int, ...] = (16, 16, 3),
    dtype: Any = np.uint8,
    masks: bool = False,
    num_actions: int = NUM_ACTIONS,
) -> FakeChunk:
    """A whole episode of `length` steps; `end` is "terminated", "truncated" or "ongoing"."""
    frames = rng.integers(0, 256, size=(length + 1, *shape)).astype(dtype)
    mask = (rng.random((length + 1, num_actions)) < 0.5).astype(np.int8)
    mask[np.arange(length + 1), rng.integers(num_actions, size=length + 1)] = 1
    return FakeChunk(
        id_=id_,
        t_started=0,
        observations={"observations": frames, "action_mask": mask} if masks else frames,
        actions=rng.integers(num_actions, size=length),
        rewards=rng.normal(size=length).astype(np.float32),
        extra={
            "root_value": rng.normal(size=length).astype(np.float32),
            "visit_policy": rng.dirichlet(np.ones(num_actions), size=length).astype(np.float32),
        },
        is_terminated=end == "terminated",
        is_truncated=end == "truncated",
    )


def interleaved_chunks(
    rng: np.random.Generator, episodes: list[FakeChunk]
) -> tuple[list[FakeChunk], list[tuple[int, int]]]:
    """The episodes cut at random into chunks in random order (in order within an episode).

    Returns:
        The chunks, and for each position id the index of its episode and its time in it.
    """
    chunks, positions = [], []
    done = [0] * len(episodes)
    while any(done[i] < len(episode) for i, episode in enumerate(episodes)):
        i = int(rng.choice([i for i, episode in enumerate(episodes) if done[i] < len(episode)]))
        high = min(len(episodes[i]), done[i] + int(rng.integers(1, 9)))
        chunks.append(episodes[i].part(done[i], high))
        positions += [(i, t) for t in range(done[i], high)]
        done[i] = high
    return chunks, positions
