"""Stacks before acting, from episodes and their chunks as RLlib cuts them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_efficientzero.connectors.stack_frames import StackFrames

FRAME = gym.spaces.Box(0, 255, (2, 3, 1), np.uint8)
ACTIONS = gym.spaces.Discrete(2)
MASKED = gym.spaces.Dict({"observations": FRAME, "action_mask": gym.spaces.Box(0, 1, (2,), np.int8)})


def frame(number: int) -> np.ndarray:
    return np.full(FRAME.shape, number + 1, dtype=np.uint8)  # 0 would look like padding


def connector(space: gym.Space = FRAME, frame_stack: int = 3) -> StackFrames:
    return StackFrames(space, ACTIONS, frame_stack=frame_stack)


def episode_of(length: int, *, lookback: int = 3, masked: bool = False) -> SingleAgentEpisode:
    """Observation t says t; its mask allows action t % 2 only."""

    def observe(t: int) -> Any:
        return {"observations": frame(t), "action_mask": np.eye(2, dtype=np.int8)[t % 2]} if masked else frame(t)

    space = MASKED if masked else FRAME
    episode = SingleAgentEpisode(observation_space=space, action_space=ACTIONS, len_lookback_buffer=lookback)
    episode.add_env_reset(observation=observe(0))
    for t in range(length):
        episode.add_env_step(observation=observe(t + 1), action=0, reward=0.0)
    return episode


def stack(episode: SingleAgentEpisode, **settings: Any) -> Any:
    batch = connector(**settings)(
        rl_module=None, batch={}, episodes=[episode], explore=False, shared_data={}, metrics=None
    )
    (items,) = batch[Columns.OBS].values()
    (item,) = items
    return item


def numbers(frames: np.ndarray) -> list[int]:
    assert frames.dtype == np.uint8
    return [int(one.flat[0]) - 1 for one in frames]


@pytest.mark.parametrize(
    ("length", "expected"), [(0, [0, 0, 0]), (1, [0, 0, 1]), (2, [0, 1, 2]), (3, [1, 2, 3]), (9, [7, 8, 9])]
)
def test_the_last_frames_oldest_first_and_the_first_one_repeated(length: int, expected: list[int]) -> None:
    found = stack(episode_of(length))
    assert found.shape == (3, 2, 3, 1)
    assert numbers(found) == expected


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_chunk_remembers_the_frames_of_the_chunk_before(length: int) -> None:
    whole = episode_of(length + 2)
    chunk = episode_of(length).cut(len_lookback_buffer=3)
    assert len(chunk) == 0
    np.testing.assert_array_equal(stack(chunk), stack(episode_of(length)))
    for t in (length + 1, length + 2):
        chunk.add_env_step(observation=frame(t), action=0, reward=0.0)
    np.testing.assert_array_equal(stack(chunk), stack(whole))


def test_only_the_observation_of_a_masked_one_is_stacked() -> None:
    found = stack(episode_of(4, masked=True), space=MASKED)
    assert numbers(found["observations"]) == [2, 3, 4]
    assert found["action_mask"].tolist() == [1, 0]


def test_one_frame_is_a_stack_too() -> None:
    assert numbers(stack(episode_of(4), frame_stack=1)) == [4]


def test_episodes_keep_their_single_frames() -> None:
    episode = episode_of(4)
    stack(episode)
    assert numbers(np.stack(episode.get_observations())) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("space", [FRAME, gym.spaces.Box(-1.0, 2.0, (5,), np.float32)])
def test_the_output_space_is_that_of_the_stack(space: gym.spaces.Box) -> None:
    output = connector(space).observation_space
    assert output.shape == (3, *space.shape)
    assert output.dtype == space.dtype
    assert output.contains(np.stack([space.sample() for _ in range(3)]))
    assert np.all(output.low == space.low.min())
    assert np.all(output.high == space.high.max())


def test_the_output_space_of_a_masked_observation() -> None:
    output = connector(MASKED).observation_space
    assert output["observations"].shape == (3, 2, 3, 1)
    assert output["action_mask"] == MASKED["action_mask"]


@pytest.mark.parametrize("space", [gym.spaces.Discrete(4), gym.spaces.Tuple((FRAME, FRAME))])
def test_other_observations_are_refused_in_a_sentence(space: gym.Space) -> None:
    with pytest.raises(ValueError, match="needs Box observations"):
        connector(space)
