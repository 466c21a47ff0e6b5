"""Every kind of space that is said to be supported learns; every other is refused before anything is played."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from env_faults import NETWORK, config
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple

from rllib_efficientzero.env.guard import BadEnvStepError
from rllib_efficientzero.env.sampling import NoEnvRunnersError
from rllib_efficientzero.env.spaces import UnsupportedSpaceError

VECTOR = Box(-1.0, 1.0, (3,), np.float32)
SMALL_IMAGES = {"channels": 4, "reduced_channels": 2, "latent_side": 4}

pytestmark = pytest.mark.usefixtures("shared_ray")


class SpaceEnv(gym.Env):
    """Random observations of a space, for actions of another, which it insists on."""

    def __init__(self, env_config: Any) -> None:
        self.observation_space, self.action_space = env_config["observations"], env_config["actions"]
        self.time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.time = 0
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.time += 1
        return self._observation(), 1.0, self.time == 10, False, {}

    def _observation(self) -> Any:
        observation = self.observation_space.sample()
        if isinstance(observation, dict) and "action_mask" in observation:
            observation["action_mask"][0] = 1
        return observation


def images(*shape: int) -> Box:
    return Box(0, 255, shape, np.uint8)


@pytest.mark.parametrize(
    ("observations", "actions"),
    [
        (VECTOR, Discrete(1)),
        (VECTOR, Discrete(3, start=1)),
        (VECTOR, Discrete(3, start=-5)),
        (VECTOR, Discrete(1000)),
        (VECTOR, MultiDiscrete([2, 3], start=[0, 1])),
        (VECTOR, MultiBinary(3)),
        (VECTOR, MultiDiscrete([20, 20, 20], start=[1, 0, -1])),
        (VECTOR, Box(np.array([-2, 0, 1]), np.array([2, 10, 3]), dtype=np.float64)),
        (Box(-np.inf, np.inf, (5,), np.float64), Discrete(2)),
        (Discrete(16), Discrete(4)),
        (Tuple((Discrete(32), Discrete(11), Discrete(2))), Discrete(2)),
        (images(24, 20, 3), Discrete(2)),
        (images(3, 24, 20), Discrete(2)),
        (images(24, 24), Discrete(2)),
        (images(4, 16, 16), Discrete(2)),
        (images(8, 8, 1), Discrete(2)),
        (Box(0.0, 1.0, (16, 16, 3), np.float32), Discrete(2)),
        (Dict({"observation": images(3, 16, 16), "action_mask": MultiBinary(5)}), Discrete(5)),
        (Dict({"position": VECTOR, "goal": VECTOR}), Discrete(2)),
    ],
    ids=str,
)
def test_what_is_supported_learns(observations: gym.Space, actions: gym.Space) -> None:
    algo = config(SpaceEnv, observations=observations, actions=actions)
    algo = algo.rl_module(model_config=NETWORK | SMALL_IMAGES)
    algo = algo.training(num_steps_sampled_before_learning_starts=8, replay_ratio=0.5, num_simulations=4).build_algo()
    for _ in range(3):
        result = algo.train()
    assert result["num_updates_lifetime"] >= 4
    assert np.isfinite(result["learners"]["default_policy"]["total_loss"])
    algo.stop()


UNSUPPORTED = [
    (VECTOR, Box(-np.inf, 1, (2,)), "cannot act in the action space Box"),
    (VECTOR, MultiDiscrete([[2, 2], [2, 2]]), "cannot act in the action space MultiDiscrete"),
    (images(2, 2, 24, 24, 3), Discrete(2), r"shape \(2, 2, 24, 24, 3\)"),
    (Text(8), Discrete(2), "observations of Text"),
    (Dict({"observations": VECTOR, "action_mask": MultiBinary(3)}), Discrete(2), "one entry for each of 2"),
]


@pytest.mark.parametrize(("observations", "actions", "words"), UNSUPPORTED, ids=[words for *_, words in UNSUPPORTED])
def test_everything_else_is_refused_at_once(observations: gym.Space, actions: gym.Space, words: str) -> None:
    algo = config(SpaceEnv, observations=observations, actions=actions)
    begun = time.thread_time()
    with pytest.raises(UnsupportedSpaceError, match=f"{words}.*Supported are"):
        algo.build_algo()
    assert time.thread_time() - begun < 2


def test_it_is_refused_in_another_process_with_the_same_sentence() -> None:
    observations, actions, words = UNSUPPORTED[0]
    algo = config(SpaceEnv, remote=1, observations=observations, actions=actions)
    with pytest.raises(NoEnvRunnersError, match=f"no EnvRunner could be built: .*{words}.*Supported are"):
        algo.build_algo()


def test_observations_that_break_their_own_space_are_refused_at_the_first() -> None:
    class Liar(SpaceEnv):
        def _observation(self) -> Any:
            return super()._observation() * 3

    algo = config(Liar, observations=Box(2.0, 3.0, (2,), np.float32), actions=Discrete(2)).build_algo()
    with pytest.raises(BadEnvStepError, match=r"environment 0 of EnvRunner 0, reset: element 0 of the observation is"):
        algo.train()
    algo.stop()
