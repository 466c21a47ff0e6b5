"""What is said about environments with a mistake, and that nothing is said about those without."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_efficientzero.env.diagnosis import examine, largest_expressible
from rllib_efficientzero.models import scalar_transform
from tests import malformed_envs as envs

ERRORS = {
    "RaisesWhenMade": ("cannot be made: FileNotFoundError: no such level: 7", "make it by hand"),
    "NoEnv": ("is a NoEnv, not a gymnasium.Env", "subclass gymnasium.Env"),
    "NoObservationSpace": ("has no observation_space", "set self.observation_space"),
    "SpaceIsAList": ("has a list for its action_space", "set self.action_space"),
    "TextObservations": ("cannot read observations of Text", "Supported are"),
    "MaskOfWrongLength": ("does not have one entry for each of 3 actions", "Supported are"),
    "MaskOfContinuousActions": ("an action_mask has one entry for each action, of which Box(", "Supported are"),
    "OldReset": ("reset() raised TypeError", "reset(self, *, seed=None, options=None)"),
    "RaisesInReset": ("reset() raised TypeError: object of type 'int' has no len()", "must work at any time"),
    "ResetWithoutInfo": ("reset() returned a ndarray", "return observation, {}"),
    "ChangingSpace": ("reset() changed the environment's spaces", "fix both spaces"),
    "FourValues": ("step() returned a tuple of 4", "observation, reward, terminated, truncated, info"),
    "RaisesInStep": ("KeyError: 'lost' in step 4 of an episode", "every action of the action space"),
    "NanObservation": ("of the observation is inf in step 2", "return finite numbers"),
    "WrongShape": ("has shape (3,), its space has (2,) in reset()", "let the observation_space say"),
    "WrongDtype": ("has dtype complex128, its space has float32", "np.asarray(observation, np.float32)"),
    "ListObservation": ("the observation is no array but [", "np.asarray(observation, np.float32)"),
    "OutsideItsSpace": ("outside its space [-1000.0, 1000.0] in reset()", "clip the observation, or widen"),
    "NanReward": ("the reward is nan in step 1", "return a finite number"),
    "NoReward": ("the reward None is not a number in step 1", "return a finite number"),
    "TerminatedIsNone": ("terminated is None", "return True or False"),
    "InfoIsNone": ("the info is a NoneType", "return a dict"),
    "Masked": ("no action is legal", "end the episode one step earlier"),
    "MaskOfPriorities": ("the action_mask has other values than 0 and 1", "write 1 for each legal action"),
}
WARNINGS = {
    "Unseeded": ("differently each time it is reset with the same seed", "self.np_random"),
    "LimitAsTermination": ("terminated after exactly 25 steps", "truncated=True instead"),
    "SaysTimeLimit": ("at its time limit is reported as terminated", "terminated=False, truncated=True"),
    "HugeRewards": (
        "a reward of 1e+06 is more than the networks can express (58706 with a support_size of 300)",
        "scale",
    ),
    "TinyRewards": ("rewards are tiny", "scale them up"),
    "Endless": ("has not ended after 2,000 steps", "set a time limit"),
    "Doubles": ("dtype float64, its space float32", "return it as float32"),
    "FloatImages": ("images of floats go up to 200", "return uint8"),
    "OneAction": ("there is only one action", "give a choice"),
    "Slow": ("steps per second: 100,000 take", "gym_env_vectorize_mode"),
    "CannotClose": ("close() raised OSError: window is gone", "let it pass"),
}


def test_sampled_actions_have_no_masks() -> None:
    assert examine(envs.Masked, representation="enumerated").findings[0].in_play
    (finding,) = examine(envs.Masked, representation="sampled").findings
    assert "an action_mask needs action_representation 'enumerated'" in str(finding)
    assert not finding.in_play


def one_finding(name: str) -> Any:
    seconds = 0.4 if name == "Slow" else 20.0
    examination = examine(getattr(envs, name), seconds=seconds, max_steps=2_500 if name == "Endless" else 300)
    assert len(examination.findings) == 1, examination.findings
    return examination.findings[0]


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_played_is_an_error_with_its_cure(name: str) -> None:
    finding = one_finding(name)
    problem, cure = ERRORS[name]
    assert problem in finding.problem
    assert cure in finding.cure
    assert finding.is_error
    assert "\n" not in str(finding)
    assert str(finding).endswith(".")


@pytest.mark.parametrize("name", WARNINGS)
def test_what_is_hardly_learned_from_is_a_warning_with_its_cure(name: str) -> None:
    finding = one_finding(name)
    problem, cure = WARNINGS[name]
    assert problem in finding.problem
    assert cure in finding.cure
    assert not finding.is_error


@pytest.mark.parametrize(
    "make",
    [
        envs.Walk,
        *(lambda name=name: gym.make(name) for name in ("CartPole-v1", "Acrobot-v1", "FrozenLake-v1", "Blackjack-v1")),
        lambda: gym.make("Taxi-v3"),
    ],
)
def test_nothing_is_said_against_what_is_in_order(make: Any) -> None:
    examination = examine(make, max_steps=500)
    assert examination.findings == []
    assert examination.steps == len(examination.rewards) > 100
    assert examination.steps_per_second > 100


def test_play_and_own_time_are_bounded() -> None:
    begun = time.thread_time()
    examination = examine(envs.Walk, max_steps=300)
    own = time.thread_time() - begun - examination.env_seconds
    assert examination.steps == 300
    assert own < 0.5
    begun = time.monotonic()
    assert 0 < examine(envs.Slow, seconds=0.2).steps < 20
    assert examine(envs.Slow, seconds=0.0).steps >= 5
    assert time.monotonic() - begun < 5


def test_actions_are_the_environments_own_and_legal() -> None:
    class Picky(envs.Walk):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = gym.spaces.MultiDiscrete([2, 3], start=[5, 7])
            mask = gym.spaces.MultiBinary(6)
            self.observation_space = gym.spaces.Dict({"observations": self.observation_space, "action_mask": mask})
            self.taken: set[tuple[int, ...]] = set()

        def observe(self) -> Any:
            return {"observations": super().observe(), "action_mask": np.array([0, 1, 0, 0, 1, 0], np.int8)}

        def step(self, action: Any) -> Any:
            self.taken.add(tuple(int(part) for part in action))
            return super().step(action)

    env = Picky()
    assert examine(lambda: env, max_steps=50).findings == []
    assert env.taken == {(5, 8), (6, 8)}


def test_the_end_of_the_support_is_that_of_the_networks() -> None:
    for size in (1, 20, 300):
        assert largest_expressible(size) == pytest.approx(scalar_transform.largest_expressible(size), rel=1e-9)
