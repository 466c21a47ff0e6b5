"""Env-to-module connector: the last S raw observations of each running episode, stacked."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns

from rllib_efficientzero.env.checks import OBSERVATIONS


class StackFrames(ConnectorV2):
    """`[...]` observations -> `[S, ...]`, oldest first; before an episode's start its first frame is repeated.

    RLlib's own stacker takes images of one channel only and pads with zeros. In dict observations (RLlib's convention
    for action masks) only the observation itself is stacked, not the mask.
    """

    def __init__(
        self,
        input_observation_space: gym.Space | None = None,
        input_action_space: gym.Space | None = None,
        *,
        frame_stack: int,
        **kwargs: Any,
    ) -> None:
        # Before super().__init__(), which already asks for the output space.
        self.frame_stack = frame_stack
        super().__init__(input_observation_space, input_action_space, **kwargs)

    def recompute_output_observation_space(
        self, input_observation_space: gym.Space, input_action_space: gym.Space
    ) -> gym.Space:
        if isinstance(input_observation_space, gym.spaces.Dict):
            spaces = dict(input_observation_space.spaces)
            spaces[OBSERVATIONS] = self._stacked_space(spaces[OBSERVATIONS])
            return gym.spaces.Dict(spaces)
        return self._stacked_space(input_observation_space)

    def _stacked_space(self, space: gym.Space) -> gym.Space:
        if not isinstance(space, gym.spaces.Box):
            raise ValueError(f"EfficientZero needs Box observations (images or vectors), not {space}.")
        repeats = (self.frame_stack,) + (1,) * len(space.shape)
        low, high = np.tile(space.low[None], repeats), np.tile(space.high[None], repeats)
        return gym.spaces.Box(low, high, dtype=space.dtype)

    def __call__(self, *, batch: dict[str, Any], episodes: list[Any], **kwargs: Any) -> dict[str, Any]:
        for episode in self.single_agent_episode_iterator(episodes):
            recent = episode.get_observations(slice(-min(self.frame_stack, _remembered(episode)), None))
            self.add_batch_item(batch, Columns.OBS, item_to_add=self._stack(recent), single_agent_episode=episode)
        return batch

    def _stack(self, recent: list[Any]) -> Any:
        recent = [recent[0]] * (self.frame_stack - len(recent)) + list(recent)
        if isinstance(recent[-1], dict):
            frames = np.stack([observation[OBSERVATIONS] for observation in recent])
            return {**recent[-1], OBSERVATIONS: frames}
        return np.stack(recent)


def _remembered(episode: Any) -> int:
    """Number of observations that an episode chunk holds, including those in its lookback buffer."""
    return len(episode.observations.data)
