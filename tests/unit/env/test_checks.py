"""What an environment hands over is judged in the form it gave: nothing bad passes, nothing good is refused."""

from __future__ import annotations

import math
import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_efficientzero.env.checks import LARGEST_REWARD, mask_problem, observation_check, reward_problem

VECTOR = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
UNBOUNDED = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
IMAGE = gym.spaces.Box(0, 255, (96, 96, 3), np.uint8)
HALF_RANGE = gym.spaces.Box(0, 100, (3,), np.uint8)
MASKED = gym.spaces.Dict({"observations": VECTOR, "action_mask": gym.spaces.Box(0, 1, (3,), np.int8)})


@pytest.mark.parametrize("reward", [0, -3, 1.5, 1e6, -1e6, 1e-8, LARGEST_REWARD, True, np.float32(2), np.array(0.5)])
def test_numbers_are_rewards(reward: Any) -> None:
    assert reward_problem(reward) is None


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (np.float32("nan"), "nan"),
        (1e38, "1e+38"),
        (-1e38, "-1e+38"),
        (None, "None is not a number"),
        ("1", "'1' is not a number"),
        (1j, "not a number"),
        ([1.0], "not a number"),
        (np.ones(2), "not a number"),
    ],
)
def test_everything_else_is_not(reward: Any, words: str) -> None:
    assert words in str(reward_problem(reward))


def vector(*values: Any, dtype: Any = np.float32) -> np.ndarray:
    return np.array(values, dtype=dtype)


@pytest.mark.parametrize(
    ("space", "observation"),
    [
        (VECTOR, vector(-1, 0, 0.5, 1)),
        (VECTOR, vector(-1, 0, 0.5, 1, dtype=np.float64)),
        (VECTOR, vector(0, 1, 0, -1, dtype=np.int64)),
        (VECTOR, vector(1.000001, 0, 0, 0)),
        (UNBOUNDED, vector(1e38, -1e38, 0, 1)),
        (IMAGE, np.full((96, 96, 3), 255, np.uint8)),
        (HALF_RANGE, vector(0, 100, 50, dtype=np.uint8)),
        (MASKED, {"observations": vector(0, 0, 0, 0), "action_mask": vector(0, 1, 1, dtype=np.int8)}),
        (gym.spaces.Discrete(3, start=1), np.int64(3)),
        (gym.spaces.Box(0, 1, (2,), bool), np.array([True, False])),
    ],
)
def test_what_lies_in_the_space_passes(space: gym.Space, observation: Any) -> None:
    assert observation_check(space)(observation) is None


@pytest.mark.parametrize(
    ("space", "observation", "words"),
    [
        (VECTOR, vector(0, 0, 0), "shape (3,), its space has (4,)"),
        (VECTOR, vector(0, np.nan, 0, 0), "element 1 of the observation is nan"),
        (VECTOR, vector(0, 0, 0, 1.01), "element 3 of the observation is 1.0"),
        (VECTOR, [0.0, 0.0, 0.0, 0.0], "no array"),
        (VECTOR, None, "no array but None"),
        (VECTOR, vector(0, 0, 0, 0, dtype=object), "dtype object, its space has float32"),
        (VECTOR, vector(0, 0, 0, 0, dtype=complex), "dtype complex128"),
        (UNBOUNDED, vector(0, 0, np.inf, 0), "element 2 of the observation is inf"),
        (UNBOUNDED, vector(0, 0, 0, -np.inf), "is -inf"),
        (UNBOUNDED, vector(0, 0, 0, np.nan), "is nan"),
        (UNBOUNDED, vector(0, 1e300, 0, 0, dtype=np.float64), "is 1e+300, outside"),
        (IMAGE, np.zeros((96, 96, 3), np.float32), "dtype float32, its space has uint8"),
        (IMAGE, np.zeros((96, 96, 3), np.int64), "dtype int64, its space has uint8"),
        (IMAGE, np.zeros((96, 96), np.uint8), "shape (96, 96)"),
        (HALF_RANGE, vector(0, 101, 0, dtype=np.uint8), "element 1 of the observation is 101, outside its space"),
        (MASKED, vector(0, 0, 0, 0), "no dict"),
        (MASKED, {"observations": vector(0, 0, 0, 0)}, "keys ['observations']"),
        (
            MASKED,
            {"observations": vector(0, 0, 0, np.nan), "action_mask": vector(1, 1, 1, dtype=np.int8)},
            "in 'observations', element 3 of the observation is nan",
        ),
        (gym.spaces.Discrete(3), 3, "is not in Discrete(3)"),
    ],
)
def test_what_does_not_is_named(space: gym.Space, observation: Any, words: str) -> None:
    assert words in str(observation_check(space)(observation))


def test_every_element_is_looked_at() -> None:
    space = gym.spaces.Box(np.array([-1.0, -np.inf, 0.0], np.float32), np.array([1.0, np.inf, 5.0], np.float32))
    check = observation_check(space)
    assert check(vector(0, 1e9, 5)) is None
    for index, bad in ((0, 1.1), (1, np.inf), (2, -0.1), (2, 5.1)):
        observation = vector(0, 0, 1)
        observation[index] = bad
        assert f"element {index} " in str(check(observation))


def test_masks_leave_something_to_do() -> None:
    assert mask_problem({"observations": 0, "action_mask": vector(0, 0, 1)}) is None
    assert "no action is legal" in str(mask_problem({"observations": 0, "action_mask": vector(0, 0, 0)}))
    assert mask_problem(vector(0, 0)) is None


@pytest.mark.parametrize(("space", "most_us"), [(VECTOR, 60.0), (IMAGE, 20.0)])
def test_checks_take_microseconds(space: gym.Space, most_us: float) -> None:
    """Limits several times what was measured (7 and 1 us with the reward): a pass over an image would be 30 or more."""
    check, observation = observation_check(space), space.sample()
    best = math.inf
    for _ in range(7):
        begun = time.thread_time()
        for _ in range(300):
            assert reward_problem(1.0) is None
            assert check(observation) is None
        best = min(best, (time.thread_time() - begun) / 300 * 1e6)
    assert best < most_us
