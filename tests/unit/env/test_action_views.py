"""Sampled actions as environments take them."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

from rllib_efficientzero.env.spaces import MAX_JOINT_ACTIONS, UnsupportedSpaceError, action_view, adapt
from rllib_efficientzero.models import actions_of

ENDS = Box(np.array([[-2.0, 0.0], [5.0, -1e6]]), np.array([[2.0, 10.0], [5.5, 1e6]]), dtype=np.float64)


def take(space: gym.Space, action: Any, representation: str = "auto") -> Any:
    """What the environment is given, which must be of its space."""
    view = action_view(space, representation)
    actions_of(view.space)  # which is one that modules act in
    assert view.space.contains(action)
    taken = action if view.transform is None else view.transform(action)
    assert space.contains(taken)
    return taken


def test_minus_one_and_one_are_the_bounds() -> None:
    assert action_view(ENDS).space == Box(-1, 1, (4,), np.float32)
    for value, expected in ((-1.0, ENDS.low), (1.0, ENDS.high), (0.0, (ENDS.low + ENDS.high) / 2)):
        np.testing.assert_array_equal(take(ENDS, np.full(4, value, np.float32)), expected)
    mixed = take(ENDS, np.array([-1.0, 1.0, 0.5, -0.5], np.float32))
    np.testing.assert_allclose(mixed, [[-2.0, 10.0], [5.375, -5e5]])


def test_rounding_never_leaves_the_bounds() -> None:
    space = Box(np.float32(-0.1), np.float32(0.3), (3,))
    for value in np.random.default_rng(0).uniform(-1, 1, size=(200, 3)).astype(np.float32):
        take(space, np.clip(value * 1.5, -1, 1))


def test_whole_numbers_are_rounded() -> None:
    space = Box(-3, 4, (2,), np.int32)
    assert take(space, np.array([-1.0, 0.99], np.float32)).tolist() == [-3, 4]
    assert take(space, np.array([0.0, -0.9], np.float32)).tolist() == [0, -3]


def test_what_is_within_one_already_stays() -> None:
    assert action_view(Box(-1, 1, (3,), np.float32)).transform is None


@pytest.mark.parametrize("space", [MultiDiscrete([3, 4], start=[1, -2]), MultiBinary(2), Discrete(4, start=-3)])
def test_choices_by_factors_when_asked(space: gym.Space) -> None:
    view = action_view(space, "sampled")
    taken = [
        np.ravel(take(space, action, "sampled"))
        for action in np.ndindex(*view.space.nvec)
        for action in [np.array(action)]
    ]
    assert len({tuple(action) for action in taken}) == np.prod(view.space.nvec)


def test_factors_where_combinations_are_too_many() -> None:
    few, many = MultiDiscrete([32, 32]), MultiDiscrete([32, 33], start=[5, 0])
    assert action_view(few).space == Discrete(MAX_JOINT_ACTIONS)
    assert action_view(many).space == MultiDiscrete([32, 33])
    assert take(many, np.array([31, 32])).tolist() == [36, 32]
    with pytest.raises(UnsupportedSpaceError, match="1056 combinations"):
        action_view(many, "enumerated")


@pytest.mark.parametrize(
    ("space", "representation", "words"),
    [
        (Box(-1, 1, (2,)), "enumerated", "cannot be enumerated"),
        (Box(-np.inf, 1, (2,)), "auto", "no bounds"),
        (Box(-1, 1, (0,)), "auto", "no bounds"),
    ],
)
def test_refused(space: gym.Space, representation: str, words: str) -> None:
    with pytest.raises(UnsupportedSpaceError, match=words):
        action_view(space, representation)


def test_masks_are_for_enumerated_actions() -> None:
    class Masked(gym.Env):
        action_space = Discrete(2)
        observation_space = Dict({"observations": Box(-1, 1, (2,)), "action_mask": MultiBinary(2)})

    assert isinstance(adapt(Masked()).action_space, Discrete)
    with pytest.raises(UnsupportedSpaceError, match="needs action_representation 'enumerated'"):
        adapt(Masked(), "sampled")
