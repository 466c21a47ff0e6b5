"""Plays whole episodes, one per seed; a search serves several environments at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_efficientzero.mcts import SearchResult
from rllib_efficientzero.playing.frame_stack import FrameStack, split_mask
from rllib_efficientzero.policy import Policy


@dataclasses.dataclass(frozen=True)
class Episode:
    """How one episode went."""

    seed: int
    episode_return: float
    length: int
    terminated: bool
    """False: truncated, by a time limit."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """A decision whose action is not taken yet; valid only during the call of `on_decision`."""

    episode: int
    """Index of the episode's seed."""
    step: int
    env: gym.Env
    observation: Any
    row: int
    """Of this environment in `result`."""
    result: SearchResult
    policy: Policy
    episode_return: float
    """Sum of the rewards before this step."""


OnDecision = Callable[[Moment], None]


class _Slot:
    """One environment and the episode that is played in it."""

    def __init__(self, env: gym.Env, frame_stack: int) -> None:
        self.env = env
        self.stack = FrameStack(frame_stack)
        self.index, self.seed, self.length, self.episode_return = -1, 0, 0, 0.0
        self.observation: Any = None
        self.frames: np.ndarray = np.empty(0)
        self.legal: np.ndarray | None = None

    def begin(self, index: int, seed: int) -> None:
        self.index, self.seed, self.length, self.episode_return = index, seed, 0, 0.0
        self.stack.reset()
        observation, _ = self.env.reset(seed=seed)
        self._see(observation)

    def step(self, action: Any) -> Episode | None:
        """Steps the environment; returns the episode if it ended."""
        observation, reward, terminated, truncated, _ = self.env.step(action)
        self.length += 1
        self.episode_return += float(reward)
        if terminated or truncated:
            return Episode(self.seed, self.episode_return, self.length, bool(terminated))
        self._see(observation)
        return None

    def _see(self, observation: Any) -> None:
        self.observation = observation
        frame, self.legal = split_mask(observation)
        self.frames = self.stack.push(frame)


def play_episodes(
    policy: Policy,
    envs: Sequence[gym.Env],
    seeds: Sequence[int],
    *,
    num_simulations: int | None = None,
    on_decision: OnDecision | None = None,
) -> Iterator[tuple[int, Episode]]:
    """Plays one episode per seed to its end and yields (index of the seed, episode) as they end.

    Plays exactly one episode per seed, so that short episodes do not count for more. The same seeds in the same number
    of environments give the same episodes.

    Args:
        policy: acts by its best action, without noise.
        envs: equal environments, as `make_environment` makes them; each plays one episode at a time.
        seeds: of the episodes.
        num_simulations: see `Policy.act`.
        on_decision: called before every step of every episode.
    """
    waiting = iter(enumerate(seeds))
    rng = np.random.default_rng(list(seeds))
    slots = [_Slot(env, int(policy.description["frame_stack"])) for env in envs]
    playing = [slot for slot in slots if _begin_next(slot, waiting)]
    while playing:
        legal = None if playing[0].legal is None else np.stack([_legal(slot) for slot in playing])
        frames = np.stack([slot.frames for slot in playing])
        result = policy.act(frames, legal_actions=legal, rng=rng, num_simulations=num_simulations)
        going_on = []
        for row, slot in enumerate(playing):
            if on_decision is not None:
                moment = Moment(
                    slot.index, slot.length, slot.env, slot.observation, row, result, policy, slot.episode_return
                )
                on_decision(moment)
            action = result.action[row]
            episode = slot.step(action if action.ndim else int(action))
            if episode is not None:
                yield slot.index, episode
            if episode is None or _begin_next(slot, waiting):
                going_on.append(slot)
        playing = going_on


def _begin_next(slot: _Slot, waiting: Iterator[tuple[int, int]]) -> bool:
    for index, seed in waiting:
        slot.begin(index, seed)
        return True
    return False


def _legal(slot: _Slot) -> np.ndarray:
    assert slot.legal is not None
    return slot.legal if slot.legal.any() else np.ones_like(slot.legal)
