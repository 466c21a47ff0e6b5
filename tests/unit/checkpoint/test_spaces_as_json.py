from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_efficientzero.checkpoint.spaces import space_from_json, space_to_json

SPACES = [
    gym.spaces.Box(0, 255, (4, 96, 96, 3), np.uint8),
    gym.spaces.Box(-np.inf, np.inf, (2, 4), np.float32),
    gym.make("CartPole-v1").observation_space,
    gym.spaces.Box(np.array([0, -5]), np.array([1, 5]), dtype=np.int64),
    gym.spaces.Discrete(5),
    gym.spaces.Discrete(5, start=2),
    gym.spaces.Dict({"observations": gym.spaces.Box(-1, 1, (3,)), "action_mask": gym.spaces.MultiBinary(4)}),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_round_trip(space: gym.Space) -> None:
    text = json.dumps(space_to_json(space), allow_nan=False)
    assert space_from_json(json.loads(text)) == space


def test_many_different_bounds_are_widened() -> None:
    low = np.zeros((200, 100), np.float32)
    low[3, 4] = -7
    space = gym.spaces.Box(low, low + 10, dtype=np.float32)
    found = space_from_json(space_to_json(space))
    assert found.shape == space.shape
    assert found.low.min() == found.low.max() == -7


def test_what_json_cannot_hold_is_said() -> None:
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        space_to_json(gym.spaces.Text(5))


def nested(depth: int) -> dict[str, Any]:
    described: dict[str, Any] = {"type": "Discrete", "n": 1, "start": 0}
    for _ in range(depth):
        described = {"type": "Dict", "spaces": {"a": described}}
    return described


BOX = {"type": "Box", "shape": [2], "dtype": "float32", "low": 0, "high": 1}


@pytest.mark.parametrize(
    "described",
    [
        None,
        [],
        {},
        {"type": "Graph"},
        {"type": "Discrete", "n": 10**12, "start": 0},
        {"type": "Discrete", "n": -1, "start": 0},
        {"type": "Discrete", "n": True, "start": 0},
        {**BOX, "shape": [10**6, 10**6]},
        {**BOX, "shape": [1] * 100},
        {**BOX, "shape": "ab"},
        {**BOX, "dtype": "object"},
        {**BOX, "dtype": "no such dtype"},
        {**BOX, "low": "nonsense"},
        {**BOX, "low": [0] * 10**6},
        {**BOX, "low": 2},
        {**BOX, "low": None},
        nested(100_000),
    ],
    ids=lambda described: (
        str(described)[:40] if not isinstance(described, dict) or "spaces" not in described else "deep"
    ),
)
def test_nonsense_is_refused(described: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - what is said differs; that it is no other error matters
        space_from_json(described)
