"""The guard around an environment: what is broken raises in one sentence, or ends a dropped episode."""

from __future__ import annotations

import logging
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_efficientzero.env.guard import (
    DROPPED,
    MAX_SHORT_LIVES,
    SHORT_LIFE,
    BadEnvStepError,
    CheckedVectorEnv,
    EnvFailedError,
    GuardCounts,
    GuardedEnv,
    GuardPolicy,
)
from tests.faulty_envs import SPACE, ScriptedEnv, explode

DROP = GuardPolicy(drop_bad_episodes=True)
RESTART = GuardPolicy(restart_failed=True)
NAN_OBSERVATION = {"observation": np.array([0, np.nan], np.float32)}


class Maker:
    """Makes scripted environments and remembers them."""

    def __init__(self, *scripts: Any, **settings: Any) -> None:
        self.scripts, self.settings = list(scripts), settings
        self.made: list[ScriptedEnv] = []

    def __call__(self) -> ScriptedEnv:
        script = self.scripts[min(len(self.made), len(self.scripts) - 1)] if self.scripts else None
        self.made.append(ScriptedEnv(script, **self.settings))
        return self.made[-1]


def guarded(maker: Maker, policy: GuardPolicy = GuardPolicy()) -> GuardedEnv:  # noqa: B008
    return GuardedEnv(maker, name="environment 2 of EnvRunner 1", policy=policy)


def play(env: gym.Env, steps: int) -> list[tuple[Any, ...]]:
    """Steps as a vector environment takes them: after an end, a reset instead of a step."""
    taken, done = [], True
    for _ in range(steps):
        if done:
            env.reset()
            done = False
        else:
            taken.append(env.step(0))
            done = taken[-1][2] or taken[-1][3]
    return taken


def test_a_sound_environment_is_left_as_it_is() -> None:
    plain, env = ScriptedEnv(length=5), guarded(Maker(length=5))
    for reset_args in ({"seed": 3}, {}):
        for result, expected in zip(env.reset(**reset_args), plain.reset(**reset_args), strict=True):
            np.testing.assert_equal(result, expected)
        for _ in range(5):
            np.testing.assert_equal(env.step(1), plain.step(1))
    assert env.guard_counts == GuardCounts()
    assert env.unwrapped.seeds == plain.seeds == [3, None]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"reward": math.nan}, "the reward is nan"),
        ({"reward": -math.inf}, "the reward is -inf"),
        ({"reward": 1e38}, r"the reward 1e\+38"),
        ({"reward": None}, "the reward None is not a number"),
        (NAN_OBSERVATION, "element 1 of the observation is nan"),
        ({"observation": np.zeros(3, np.float32)}, r"shape \(3,\)"),
        ({"observation": np.zeros(2, object)}, "dtype object"),
        ({"observation": np.full(2, 7, np.float32)}, r"7.0, outside its space \[-1.0, 1.0\]"),
        ({"info": None}, "info is no dict but NoneType"),
    ],
)
def test_a_bad_step_raises_with_environment_step_and_value(broken: dict[str, Any], words: str) -> None:
    env = guarded(Maker({4: broken}))
    env.reset()
    for _ in range(3):
        env.step(0)
    with pytest.raises(
        BadEnvStepError, match=rf"^environment 2 of EnvRunner 1, step 4 of its episode: .*{words}"
    ) as error:
        env.step(0)
    assert "drop_episode" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bad_step_ends_a_dropped_episode_if_told_so() -> None:
    maker = Maker({15: NAN_OBSERVATION | {"reward": math.nan}}, in_episodes=lambda episode: episode == 1)
    env = guarded(maker, DROP)
    steps = play(env, 100)
    dropped = [step for step in steps if DROPPED in step[4]]
    ((observation, reward, terminated, truncated, info),) = dropped
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info[DROPPED] == "the reward is nan"
    assert SPACE.contains(observation)
    assert all(np.isfinite(step[0]).all() and np.isfinite(step[1]) for step in steps)
    assert len(maker.made) == 1, "the environment itself goes on"
    assert env.guard_counts == GuardCounts(bad_steps=1)


def test_an_observation_that_is_overwritten_later_does_not_spoil_the_stand_in() -> None:
    class Overwriting(ScriptedEnv):
        def __init__(self) -> None:
            super().__init__()
            self.state = np.zeros(2, np.float32)

        def _observation(self) -> np.ndarray:
            self.state[:] = np.nan if self.time == 12 else 0.5
            return self.state

    env = GuardedEnv(Overwriting, name="it", policy=DROP)
    steps = play(env, 14)
    assert DROPPED in steps[-1][4]
    assert np.isfinite(steps[-1][0]).all()


def test_an_environment_that_raises_is_named() -> None:
    env = guarded(Maker({2: explode}))
    env.reset()
    env.step(0)
    with pytest.raises(
        EnvFailedError,
        match=r"environment 2 of EnvRunner 1 raised KeyError: 'the simulator lost its "
        r"state' in step 2 of its episode",
    ) as error:
        env.step(0)
    assert isinstance(error.value.__cause__, KeyError)


def test_an_environment_that_raises_is_made_anew_if_told_so() -> None:
    maker = Maker({15: explode}, {})
    env = guarded(maker, RESTART)
    env.reset(seed=5)
    steps = play(env, 60)
    assert sum(DROPPED in step[4] for step in steps) == 1
    assert len(maker.made) == 2
    assert maker.made[0].closed
    assert env.guard_counts == GuardCounts(restarts=1)
    assert maker.made[1].seeds[0] is not None, "a run with a seed stays one"
    again = Maker({15: explode}, {})
    other = guarded(again, RESTART)
    other.reset(seed=5)
    play(other, 60)
    assert again.made[1].seeds == maker.made[1].seeds


def test_each_policy_is_its_own() -> None:
    for policy, fault, kind in ((DROP, explode, EnvFailedError), (RESTART, NAN_OBSERVATION, BadEnvStepError)):
        env = guarded(Maker({1: fault}), policy)
        env.reset()
        with pytest.raises(kind):
            env.step(0)


@pytest.mark.parametrize(("policy", "fault"), [(DROP, {"reward": math.nan}), (RESTART, explode)])
def test_what_breaks_at_once_each_time_is_given_up(policy: GuardPolicy, fault: Any) -> None:
    env = guarded(Maker({1: fault}), policy)
    with pytest.raises(EnvFailedError, match=f"{MAX_SHORT_LIVES} times in a row"):
        play(env, 1000)


def test_what_breaks_late_each_time_is_not() -> None:
    env = guarded(Maker({12: {"reward": math.nan}}), DROP)
    steps = play(env, 1000)
    assert env.guard_counts.bad_steps > 50
    assert len(steps) > 900


def test_good_episodes_between_are_no_row() -> None:
    for length in (3, 1000):  # one ends well, one is still good when it is cut off
        maker = Maker({1: {"reward": math.nan}}, in_episodes=lambda episode: episode % 2 == 0, length=length)
        env = guarded(maker, DROP)
        for _ in range(2 * MAX_SHORT_LIVES):
            for steps in (1, min(length, SHORT_LIFE)):
                env.reset()
                for _ in range(steps):
                    env.step(0)
        assert env.guard_counts.bad_steps == 2 * MAX_SHORT_LIVES


def test_a_bad_reset_is_tried_again() -> None:
    maker = Maker(first_reset=np.full(2, np.nan, np.float32))
    env = guarded(maker, DROP)
    observation, _ = env.reset(seed=0)
    assert np.isfinite(observation).all()
    assert env.guard_counts.bad_steps == 1
    with pytest.raises(BadEnvStepError, match="EnvRunner 1, reset: element 0 of the observation is nan"):
        guarded(Maker(first_reset=np.full(2, np.nan, np.float32))).reset()


def test_resets_that_never_succeed_end() -> None:
    class NoReset(ScriptedEnv):
        def reset(self, **kwargs: Any) -> Any:
            raise ConnectionError("no simulator")

    with pytest.raises(EnvFailedError, match=r"could not be reset 10 times.*ConnectionError: no simulator"):
        GuardedEnv(NoReset, name="it", policy=RESTART).reset(seed=0)


def test_a_new_environment_must_have_the_same_spaces() -> None:
    class Changing(Maker):
        def __call__(self) -> ScriptedEnv:
            env = super().__call__()
            env.action_space = gym.spaces.Discrete(2 + len(self.made))
            return env

    env = guarded(Changing({1: explode}), RESTART)
    env.reset()
    with pytest.raises(EnvFailedError, match="other spaces"):
        env.step(0)


def test_hidden_steps_of_replaced_environments_stay_counted() -> None:
    maker = Maker({1: explode}, {})
    env = guarded(maker, RESTART)
    maker.made[0].hidden_steps = 7
    env.reset()
    env.step(0)
    maker.made[1].hidden_steps = 2
    assert env.guard_counts.hidden_steps == 9


def test_rewards_beyond_the_support_are_counted_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    env = guarded(Maker({t: {"reward": -5.0} for t in range(1, 8)}), GuardPolicy(largest_expressible=4.0))
    env.reset()
    with caplog.at_level(logging.WARNING):
        steps = [env.step(0) for _ in range(10)]
    assert [step[1] for step in steps[:8]] == [-5.0] * 7 + [1.0], "they are passed on"
    assert env.guard_counts.saturated_rewards == 7
    assert len(caplog.records) == 3, "the first, second and fourth"
    assert "cannot express more than 4" in caplog.text


MASKED = gym.spaces.Dict({"observations": SPACE, "action_mask": gym.spaces.MultiBinary(3)})


class MaskedEnv(ScriptedEnv):
    """Nothing is legal from step `empty_at` on."""

    def __init__(self, empty_at: int, length: int = 20) -> None:
        super().__init__(length=length)
        self.empty_at = empty_at
        self.observation_space = MASKED

    def _observation(self) -> Any:
        mask = np.array([0, self.time < self.empty_at, 0], np.int8)
        return {"observations": super()._observation(), "action_mask": mask}


def test_no_legal_action_is_an_error_unless_the_episode_ends() -> None:
    env = GuardedEnv(lambda: MaskedEnv(empty_at=4, length=4), name="it", policy=GuardPolicy())
    assert len(play(env, 10)) > 7
    env = GuardedEnv(lambda: MaskedEnv(empty_at=4), name="it", policy=GuardPolicy())
    with pytest.raises(BadEnvStepError, match=r"step 4 of its episode: no action is legal"):
        play(env, 10)
    with pytest.raises(BadEnvStepError, match=r"reset: no action is legal"):
        GuardedEnv(lambda: MaskedEnv(empty_at=0), name="it", policy=GuardPolicy()).reset()


class NativeVector(gym.vector.VectorEnv):
    """A vector environment of its own making, told what to return."""

    def __init__(self) -> None:
        self.num_envs = 3
        self.single_observation_space, self.single_action_space = SPACE, gym.spaces.Discrete(3)
        self.observation_space = gym.vector.utils.batch_space(SPACE, 3)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, 3)
        self.observations = np.zeros((3, 2), np.float32)
        self.rewards = np.zeros(3)

    def reset(self, **kwargs: Any) -> Any:
        return self.observations, {}

    def step(self, actions: Any) -> Any:
        return self.observations, self.rewards, np.zeros(3, bool), np.zeros(3, bool), {}


def test_vectors_of_their_own_are_checked_too() -> None:
    vector = NativeVector()
    env = CheckedVectorEnv(vector, name="EnvRunner 1")
    env.reset()
    env.step(np.zeros(3))
    vector.rewards = np.array([0, 0, np.nan])
    with pytest.raises(BadEnvStepError, match="environment 2 of EnvRunner 1, step 2 of the vector: the reward is nan"):
        env.step(np.zeros(3))
    vector.rewards = np.zeros(3)
    vector.observations = np.array([[0, 0], [0, np.inf], [0, 0]], np.float32)
    with pytest.raises(BadEnvStepError, match=r"environment 1 of EnvRunner 1.*element 1 of the observation is inf"):
        env.step(np.zeros(3))
    with pytest.raises(BadEnvStepError, match="environment 1 of EnvRunner 1"):
        env.reset()
