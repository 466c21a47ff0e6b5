"""Spaces in the form in which they are played: the same content, and a sentence for what cannot be."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, Sequence, Text, Tuple

from rllib_efficientzero.env.spaces import (
    UnsupportedSpaceError,
    action_view,
    adapt,
    adapt_vector,
    observation_view,
)

TWO = Discrete(2)


def images(*shape: int) -> Box:
    return Box(0, 255, shape, np.uint8)


def floats(*shape: int, dtype: Any = np.float32) -> Box:
    return Box(-np.inf, np.inf, shape, dtype)


@pytest.mark.parametrize(
    ("space", "shape", "dtype"),
    [
        (floats(4), (4,), np.float32),
        (floats(4, dtype=np.float64), (4,), np.float32),
        (floats(), (1,), np.float32),
        (floats(10, 4), (40,), np.float32),
        (Box(0, 9, (5,), np.int64), (5,), np.int64),
        (Box(0, 9, (5,), np.uint16), (5,), np.int64),
        (images(128), (128,), np.uint8),
        (images(96, 96, 3), (96, 96, 3), np.uint8),
        (images(3, 96, 96), (96, 96, 3), np.uint8),
        (images(96, 96), (96, 96, 1), np.uint8),
        (images(1, 84, 84), (84, 84, 1), np.uint8),
        (images(84, 84, 1), (84, 84, 1), np.uint8),
        (images(4, 64, 48), (64, 48, 4), np.uint8),
        (images(1, 96, 96, 3), (96, 96, 3), np.uint8),
        (images(1, 12, 96, 96), (96, 96, 12), np.uint8),
        (images(8, 8, 3), (8, 8, 3), np.uint8),
        (Box(0, 1, (8, 8, 111), np.int8), (8, 8, 111), np.int8),
        (floats(111, 8, 8), (8, 8, 111), np.float32),
        (images(7, 7, 3), (147,), np.uint8),
        (Discrete(16), (16,), np.int64),
        (Discrete(16, start=-3), (16,), np.int64),
        (MultiDiscrete([3, 4]), (7,), np.int64),
        (MultiBinary(6), (6,), np.int8),
        (Tuple((Discrete(32), Discrete(11), Discrete(2))), (45,), np.int64),
        (Dict({"position": floats(2), "goal": floats(3)}), (5,), np.float32),
    ],
)
def test_observations_become_vectors_or_images(space: gym.Space, shape: tuple[int, ...], dtype: Any) -> None:
    view = observation_view(space, TWO)
    assert (view.space.shape, view.space.dtype) == (shape, dtype)
    space.seed(0)
    for _ in range(5):
        sample = space.sample()
        seen = sample if view.transform is None else view.transform(sample)
        assert view.space.contains(seen)
        assert seen.flags.c_contiguous


def test_what_needs_no_change_gets_none() -> None:
    masked = Dict({"observations": floats(4), "action_mask": Box(0, 1, (2,), np.int8)})
    for space in (floats(4), images(96, 96, 3), masked):
        assert observation_view(space, TWO).transform is None
    assert action_view(Discrete(5)).transform is None


def test_pixels_stay_where_they_are() -> None:
    first = images(3, 10, 12)
    sample = first.sample()
    seen = observation_view(first, TWO).transform(sample)
    for channel in range(3):
        np.testing.assert_array_equal(seen[..., channel], sample[channel])
    batch = np.stack([sample, sample // 2])
    np.testing.assert_array_equal(observation_view(first, TWO).transform(batch)[1], seen // 2)


def test_bounds_go_along() -> None:
    low = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    view = observation_view(Box(low, low + 1, dtype=np.float64), TWO)
    np.testing.assert_array_equal(view.space.low, low.ravel().astype(np.float32))
    np.testing.assert_array_equal(view.space.high, low.ravel().astype(np.float32) + 1)


@pytest.mark.parametrize("key", ["observations", "observation", "obs"])
@pytest.mark.parametrize("mask", [Box(0, 1, (3,), np.float32), MultiBinary(3), Box(0, 1, (3,), bool)])
def test_masks_may_have_any_type(key: str, mask: gym.Space) -> None:
    space = Dict({key: images(3, 16, 16), "action_mask": mask})
    view = observation_view(space, Discrete(3, start=7))
    seen = view.transform(space.sample())
    assert view.space.contains(seen)
    assert set(seen) == {"observations", "action_mask"}
    assert seen["observations"].shape == (16, 16, 3)
    assert seen["action_mask"].dtype == np.int8


@pytest.mark.parametrize(
    ("space", "first", "last", "count"),
    [
        (Discrete(4, start=-2), -2, 1, 4),
        (Discrete(1), 0, 0, 1),
        (MultiDiscrete([2, 3]), [0, 0], [1, 2], 6),
        (MultiDiscrete([2, 3], start=[1, -1]), [1, -1], [2, 1], 6),
        (MultiBinary(3), [0, 0, 0], [1, 1, 1], 8),
        (Discrete(1000), 0, 999, 1000),
    ],
)
def test_every_action_can_be_taken_once(space: gym.Space, first: Any, last: Any, count: int) -> None:
    view = action_view(space)
    assert view.space == Discrete(count)
    taken = [action if view.transform is None else view.transform(action) for action in range(count)]
    assert all(space.contains(np.asarray(action) if np.ndim(action) else int(action)) for action in taken)
    assert len({tuple(np.ravel(action)) for action in taken}) == count
    np.testing.assert_array_equal(taken[0], first)
    np.testing.assert_array_equal(taken[-1], last)


class Puzzle(gym.Env):
    """Rewards the action [2, 5]; observations are channels first."""

    observation_space = images(3, 16, 16)
    action_space = MultiDiscrete([2, 3], start=[1, 4])

    def reset(self, **kwargs: Any) -> Any:
        return np.zeros((3, 16, 16), np.uint8), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        return np.full((3, 16, 16), 7, np.uint8), float((action == [2, 5]).all()), False, False, {}


@pytest.mark.parametrize(
    ("observations", "actions", "words"),
    [
        (floats(4), Box(-1, np.inf, (2,)), "has no bounds"),
        (floats(4), MultiDiscrete([[2, 2], [2, 2]]), "action space MultiDiscrete"),
        (floats(4), Dict({"a": TWO}), "action space Dict"),
        (floats(0), TWO, r"shape \(0,\)"),
        (images(2, 2, 96, 96, 3), TWO, "shape"),
        (images(4, 96, 96, 3), TWO, "shape"),
        (Text(10), TWO, "observations of Text"),
        (Sequence(TWO), TWO, "observations of Sequence"),
        (Graph(floats(3), None), TWO, "observations of Graph"),
        (Dict({"text": Text(3), "x": floats(2)}), TWO, "observations of Dict"),
        (
            Dict({"a": floats(2), "b": floats(2), "action_mask": MultiBinary(2)}),
            TWO,
            r"keys \['a', 'action_mask', 'b'\]",
        ),
        (Dict({"observations": floats(2), "action_mask": MultiBinary(3)}), TWO, "one entry for each of 2 actions"),
        (Dict({"observations": floats(2), "action_mask": MultiBinary(66)}), MultiDiscrete([33, 33]), "too many"),
    ],
)
def test_what_cannot_be_played_is_refused_with_what_can(
    observations: gym.Space, actions: gym.Space, words: str
) -> None:
    class Unplayable(Puzzle):
        observation_space, action_space = observations, actions

    with pytest.raises(UnsupportedSpaceError, match=words) as error:
        adapt(Unplayable())
    assert "Supported are" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_adapted_environment_plays_as_its_own() -> None:
    env = adapt(Puzzle())
    assert env.observation_space.contains(env.reset()[0])
    rewards = []
    for action in range(env.action_space.n):
        observation, reward, *_ = env.step(np.int64(action))
        assert env.observation_space.contains(observation)
        rewards.append(reward)
    assert sum(rewards) == 1
    assert rewards[4] == 1


def test_native_vectors_are_adapted_as_a_whole_or_refused() -> None:
    class Native(gym.vector.VectorEnv):
        def __init__(self, observations: gym.Space, actions: gym.Space) -> None:
            self.num_envs = 2
            self.single_observation_space, self.single_action_space = observations, actions
            self.observation_space = gym.vector.utils.batch_space(observations, 2)
            self.action_space = gym.vector.utils.batch_space(actions, 2)

        def reset(self, **kwargs: Any) -> Any:
            return self.observation_space.sample(), {}

    env = adapt_vector(Native(images(1, 96, 64, 3), TWO))
    assert env.single_observation_space.shape == (96, 64, 3)
    assert env.reset()[0].shape == (2, 96, 64, 3)
    with pytest.raises(UnsupportedSpaceError, match="'sync' or 'async'"):
        adapt_vector(Native(Discrete(5), TWO))
    with pytest.raises(UnsupportedSpaceError, match="'sync' or 'async'"):
        adapt_vector(Native(floats(5), Discrete(2, start=1)))
