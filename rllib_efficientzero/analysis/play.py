"""Plays on from saved states of environments."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv

from rllib_efficientzero.env.named import named_protocol
from rllib_efficientzero.playing.environment import make_environment
from rllib_efficientzero.playing.frame_stack import FrameStack
from rllib_efficientzero.policy import Policy

MAX_BATCH = 64
"""Most environments that are played at once."""


class Player:
    """One environment and the last S frames it showed, stacked as the policy expects them."""

    def __init__(self, make: Callable[[], gym.Env], frame_stack: int) -> None:
        # `capture` and `restore` take vectors. This one has a single environment, which is stepped directly.
        self._vector = SyncVectorEnv([make])
        self._env = self._vector.envs[0]
        self._frames = FrameStack(frame_stack)
        self.stacked = np.empty(0)
        """`[S, ...]`, oldest first."""
        self.is_over = True

    @property
    def game_goes_on(self) -> bool:
        """At the end of an episode: whether it ended by a lost life, so that the next one goes on with the game."""
        return bool(self._env.has_wrapper_attr("game_goes_on") and self._env.get_wrapper_attr("game_goes_on"))

    def reset(self, seed: int | None = None) -> None:
        """Begins an episode; its first frame fills the stack."""
        observation, _ = self._env.reset(seed=seed)
        self._frames.reset()
        self.stacked = self._frames.push(np.asarray(observation))
        self.is_over = False

    def step(self, action: int) -> tuple[float, bool]:
        """Returns the reward, and whether the episode terminated; `is_over` also says if it was truncated."""
        observation, reward, terminated, truncated, _ = self._env.step(action)
        self.stacked = self._frames.push(np.asarray(observation))
        self.is_over = bool(terminated or truncated)
        return float(reward), bool(terminated)

    def save(self) -> bytes:
        """Returns the state of the environment, with its random generators, and the stack.

        Raises:
            ValueError: the environment's state cannot be saved.
        """
        from rllib_efficientzero.env.env_state import capture

        state = capture(self._vector)
        if state is None:
            raise ValueError(f"the state of {self._env} cannot be saved")
        return pickle.dumps((state, self._frames, self.stacked, self.is_over))

    def restore(self, saved: bytes) -> None:
        """Restores what `save` returned, for this or another player of the same environment."""
        from rllib_efficientzero.env.env_state import restore

        state, self._frames, self.stacked, self.is_over = pickle.loads(saved)
        restore(self._vector, state)

    def close(self) -> None:
        """Ends the environment."""
        self._vector.close()


def training_environment(policy: Policy) -> gym.Env:
    """Makes the environment that a policy was trained on, with lives and rewards as in training.

    Raises:
        PlayError: the checkpoint does not say how it is made.
    """
    protocol = policy.description["protocol"]
    known = named_protocol(protocol["env"], {})
    if known is None:
        return make_environment(policy, env_config=policy.description.get("env_config"))
    return make_environment(policy, env_config={key: protocol["training"][key] for key in known.evaluation_settings})


def discounted_returns(
    policy: Policy,
    make: Callable[[], gym.Env],
    states: Sequence[bytes],
    *,
    gamma: float,
    max_steps: int,
    seed: int = 0,
) -> np.ndarray:
    """Returns what greedy play earns from saved states: `[len(states)]` sums of gamma^t r_t to the episode's end.

    Args:
        policy: plays on from the states.
        make: makes the environment of the states.
        states: from `Player.save`, of episodes that have not ended.
        gamma: discount per step.
        max_steps: the sum is cut after so many steps; later rewards have a weight of gamma^max_steps at most.
        seed: breaks ties of the search.
    """
    returns = np.zeros(len(states))
    rng = np.random.default_rng(seed)
    for batch in _batches(range(len(states))):
        players = [Player(make, policy.description["frame_stack"]) for _ in batch]
        try:
            for player, index in zip(players, batch, strict=True):
                player.restore(states[index])
            for t in range(max_steps):
                playing = [(i, p) for i, p in zip(batch, players, strict=True) if not p.is_over]
                if not playing:
                    break
                actions = policy.act(np.stack([player.stacked for _, player in playing]), rng=rng).action
                for (index, player), action in zip(playing, actions, strict=True):
                    returns[index] += gamma**t * player.step(int(action))[0]
        finally:
            for player in players:
                player.close()
    return returns


def _batches(items: range) -> Iterator[range]:
    for start in range(0, len(items), MAX_BATCH):
        yield items[start : start + MAX_BATCH]
