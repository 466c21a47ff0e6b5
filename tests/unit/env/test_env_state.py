"""Environments in processes of their own give their state, and go on from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers.vector import DictInfoToList

from rllib_efficientzero.env import env_state
from rllib_efficientzero.env.guard import GuardPolicy
from rllib_efficientzero.env.making import make_vector_env

NUM_ENVS = 2
ENDS = 5


class Counting(gym.Env):
    """Every observation is a draw of its own generator and one of the process's; ends after 5 steps."""

    observation_space = gym.spaces.Box(0.0, 1.0, (2,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, config: dict[str, Any]) -> None:
        self.time = 0
        if config.get("opaque"):
            self.handle = (x for x in ())

    def _draw(self) -> np.ndarray:
        return np.array([self.np_random.random(), np.random.random()], np.float32)  # noqa: NPY002

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._draw(), {"began": True}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return self._draw(), float(action), self.time >= ENDS, False, {}


def made(env: Any = Counting, **settings: Any) -> Any:
    mode = gym.VectorizeMode.ASYNC
    policy = GuardPolicy()
    vector = make_vector_env(env, settings, num_envs=NUM_ENVS, mode=mode, policy=policy, runner="it", timeout_s=60)
    return DictInfoToList(vector)


@pytest.fixture
def vectors() -> Iterator[list[Any]]:
    played = [made(), made()]
    yield played
    for vector in played:
        vector.close()


def steps(vector: Any, count: int) -> list[Any]:
    return [vector.step(np.array([0, 1])) for _ in range(count)]


@pytest.mark.parametrize("before", [3, ENDS, ENDS + 1])
@pytest.mark.parametrize("meanwhile", [0, 1, ENDS])
def test_they_go_on_from_a_state(vectors: list[Any], before: int, meanwhile: int) -> None:
    """Within an episode, after its end, and after the beginning of the next one, whatever the other has played."""
    one, other = vectors
    one.reset(seed=7)
    steps(one, before)
    state = env_state.capture(one)
    other.reset(seed=8)
    steps(other, meanwhile)
    env_state.restore(other, state)
    # A state that was put back can be taken again before anybody plays on.
    env_state.restore(other, env_state.capture(other))
    expected, found = steps(one, 2 * ENDS), steps(other, 2 * ENDS)
    for values, others in zip(expected, found, strict=True):
        for value, same in zip(values, others, strict=True):
            np.testing.assert_array_equal(value, same)


def test_where_one_has_no_state_none_have() -> None:
    vector = made(opaque=True)
    vector.reset(seed=0)
    assert env_state.capture(vector) is None
    steps(vector, 1)
    vector.close()


def test_a_state_of_others_is_refused_and_they_live_on(vectors: list[Any]) -> None:
    wrapped = made(lambda config: gym.wrappers.TimeLimit(Counting(config), 3))
    wrapped.reset(seed=0)
    with pytest.raises(ValueError, match=r"^the saved environments have more layers than these, which have 2$"):
        env_state.restore(vectors[0], env_state.capture(wrapped))
    vectors[0].reset(seed=1)
    steps(vectors[0], 1)
    wrapped.close()
