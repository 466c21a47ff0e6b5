"""Wrappers that check environments at every step, so that a broken one is found at once and named in one sentence.

A `GuardedEnv` wraps every environment of a vector. It refuses invalid rewards and observations, and handles
environments that raise. Environments that come as a ready-made vector are only checked, by `CheckedVectorEnv`.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np

from rllib_efficientzero.env import checks

logger = logging.getLogger(__name__)

DROPPED = "dropped"
"""Info key of the last step of an episode that was cut off because its environment broke; its value says why."""
MAX_SHORT_LIVES = 10
"""If so many episodes in a row break in fewer than SHORT_LIFE steps, or so many resets in a row fail, the run ends."""
SHORT_LIFE = 10


class BadEnvStepError(ValueError):
    """An environment returned a reward or an observation that cannot be learned from."""


class EnvFailedError(RuntimeError):
    """An environment raised an error, its process ended, or it did not answer."""


@dataclasses.dataclass(frozen=True)
class GuardPolicy:
    """What to do with an environment that is broken."""

    drop_bad_episodes: bool = False
    """After a bad step, drop the part of the episode not yet returned by `sample` and begin a new one; else raise."""
    restart_failed: bool = False
    """Make an environment that raised anew, and drop its episode in the same way; else raise."""
    largest_expressible: float = float("inf")
    """Larger rewards saturate in the networks' support; they are counted and warned about, not refused."""


@dataclasses.dataclass
class GuardCounts:
    """Counts of what a guard has seen since it was made."""

    bad_steps: int = 0
    restarts: int = 0
    saturated_rewards: int = 0
    hidden_steps: int = 0
    """Environment steps taken inside resets."""

    def __add__(self, other: GuardCounts) -> GuardCounts:
        return GuardCounts(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def __sub__(self, other: GuardCounts) -> GuardCounts:
        return GuardCounts(*(a - b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


class GuardedEnv(gym.Wrapper):
    """One environment, checked at every step and made anew when it fails.

    A dropped episode ends with a truncation whose info has the key `DROPPED`, so that a vector environment resets only
    this environment; the observation of that step is a placeholder.

    Raises:
        BadEnvStepError: a step or reset was bad, and the policy is not to drop the episode.
        EnvFailedError: the environment raised and the policy is not to restart it, or it breaks again and again.
    """

    env: gym.Env

    def __init__(self, make: Callable[[], gym.Env], *, name: str, policy: GuardPolicy) -> None:
        """Args:
        make: makes the environment, now and after failures.
        name: what it is called in messages, such as "environment 2 of EnvRunner 1".
        policy: see `GuardPolicy`.
        """
        self._make, self._name, self._policy = make, name, policy
        super().__init__(make())
        self._observation_problem = checks.observation_check(self.env.observation_space)
        self._spaces = (self.env.observation_space, self.env.action_space)
        self._counts = GuardCounts()
        self._hidden_steps_before = 0
        self._time = 0
        self._short_lives = 0
        self._stand_in: Any = None
        self._seeds: np.random.Generator | None = None
        self._next_seed: int | None = None

    @property
    def guard_counts(self) -> GuardCounts:
        """Counts so far, over all the environments made."""
        hidden_steps = self._hidden_steps_before + _hidden_steps(self.env)
        return dataclasses.replace(self._counts, hidden_steps=hidden_steps)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._time += 1
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except Exception as error:
            self._fail(f"step {self._time} of its episode", error)
            return self._drop(f"it raised {_describe(error)}")
        problem = (
            checks.reward_problem(reward)
            or self._observation_problem(observation)
            or (None if terminated or truncated else checks.mask_problem(observation))
            or _info_problem(info)
        )
        if problem:
            self._count_bad(f"step {self._time} of its episode", problem)
            return self._drop(problem)
        reward = float(reward)
        if abs(reward) > self._policy.largest_expressible:
            self._count_saturated(reward)
        if terminated or truncated or self._time >= SHORT_LIFE:
            self._short_lives = 0
        return observation, reward, bool(terminated), bool(truncated), info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._seeds = np.random.default_rng(seed)
        elif self._next_seed is not None:
            seed, self._next_seed = self._next_seed, None
        self._time = 0
        problem: str | None = None
        for _ in range(MAX_SHORT_LIVES):
            try:
                observation, info = self.env.reset(seed=seed, options=options)
            except Exception as error:
                self._fail("reset", error)
                problem = f"it raised {_describe(error)}"
                seed, self._next_seed = self._next_seed, None
                continue
            problem = self._observation_problem(observation) or checks.mask_problem(observation) or _info_problem(info)
            if problem is None:
                if self._stand_in is None:
                    self._stand_in = copy.deepcopy(observation)
                return observation, info
            self._count_bad("reset", problem)
            seed = None
        raise EnvFailedError(
            f"{self._name} could not be reset {MAX_SHORT_LIVES} times in a row; the last time {problem}."
        )

    def _fail(self, when: str, error: Exception) -> None:
        """Raises, or makes the environment anew, as the policy says."""
        if not self._policy.restart_failed:
            raise EnvFailedError(f"{self._name} raised {_describe(error)} in {when}.") from error
        self._counts.restarts += 1
        _warn(self._counts.restarts, "%s raised %s in %s and is made anew.", self._name, _describe(error), when)
        self._hidden_steps_before += _hidden_steps(self.env)
        try:
            self.env.close()
        except Exception as close_error:
            logger.info("%s could not be closed: %s", self._name, _describe(close_error))
        try:
            self.env = self._make()
        except Exception as make_error:
            raise EnvFailedError(f"{self._name} could not be made anew: {_describe(make_error)}.") from make_error
        if (self.env.observation_space, self.env.action_space) != self._spaces:
            raise EnvFailedError(f"{self._name} was made anew and now has other spaces than before.") from error
        if self._seeds is not None:
            self._next_seed = int(self._seeds.integers(2**31))

    def _count_bad(self, when: str, problem: str) -> None:
        """Counts a bad step or reset; then raises or warns, as the policy says."""
        self._counts.bad_steps += 1
        if not self._policy.drop_bad_episodes:
            raise_bad_step(self._name, when, problem)
        _warn(self._counts.bad_steps, "%s, %s: %s. The episode is dropped.", self._name, when, problem)

    def _count_saturated(self, reward: float) -> None:
        self._counts.saturated_rewards += 1
        _warn(
            self._counts.saturated_rewards,
            "%s returned the reward %g, but the networks cannot express more than %g: scale the rewards, or raise "
            "support_size in model_config.",
            *(self._name, reward, self._policy.largest_expressible),
        )

    def _drop(self, problem: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Returns the step that ends a dropped episode; raises if too many episodes in a row ended early."""
        self._short_lives = self._short_lives + 1 if self._time < SHORT_LIFE else 0
        if self._short_lives >= MAX_SHORT_LIVES:
            raise EnvFailedError(
                f"{self._name} broke within {SHORT_LIFE} steps {MAX_SHORT_LIVES} times in a row; the last time, "
                f"{problem}."
            )
        return self._stand_in, 0.0, False, True, {DROPPED: problem}


class CheckedVectorEnv(gym.vector.VectorWrapper):
    """Checks an environment that is itself a vector. Raises on any problem: one part cannot be made anew alone."""

    def __init__(self, env: gym.vector.VectorEnv, *, name: str) -> None:
        super().__init__(env)
        self._name = name
        self._observations_problem = checks.observation_check(env.observation_space)
        self._observation_problem = checks.observation_check(env.single_observation_space)
        self._time = 0

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observations, infos = self.env.reset(seed=seed, options=options)
        self._check(observations, np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=bool))
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        self._time += 1
        self._check(observations, np.asarray(rewards), np.asarray(terminated | truncated))
        return observations, rewards, terminated, truncated, infos

    def _check(self, observations: Any, rewards: np.ndarray, done: np.ndarray) -> None:
        """Checks all environments at once; only if something is wrong, one by one to say which it is."""
        masks = observations.get(checks.ACTION_MASK) if isinstance(observations, dict) else None
        is_bad = (
            self._observations_problem(observations) is not None
            or not (np.abs(rewards) <= checks.LARGEST_REWARD).all()
            or (masks is not None and not (masks.any(axis=1) | done).all())
        )
        if not is_bad:
            return
        for index, observation in enumerate(gym.vector.utils.iterate(self.observation_space, observations)):
            problem = (
                checks.reward_problem(rewards[index])
                or self._observation_problem(observation)
                or (None if done[index] else checks.mask_problem(observation))
            )
            if problem:
                raise_bad_step(f"environment {index} of {self._name}", f"step {self._time} of the vector", problem)
        raise_bad_step(self._name, f"step {self._time}", str(self._observations_problem(observations)))


def raise_bad_step(name: str, when: str, problem: str) -> NoReturn:
    """Raises a BadEnvStepError that says which environment, when, and what was wrong."""
    raise BadEnvStepError(
        f"{name}, {when}: {problem}. The step was not stored; on_bad_env_step='drop_episode' would drop such episodes "
        "and go on."
    )


def _info_problem(info: Any) -> str | None:
    return None if isinstance(info, dict) else f"the info is no dict but {type(info).__name__}"


def _hidden_steps(env: gym.Env) -> int:
    return int(env.get_wrapper_attr("hidden_steps")) if env.has_wrapper_attr("hidden_steps") else 0


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _warn(count: int, message: str, *args: Any) -> None:
    """Warns the 1st, 2nd, 4th, 8th, ... time only, so that a broken environment cannot fill the disk with logs."""
    if count & (count - 1) == 0:
        logger.warning(message + " (%d so far)", *args, count)
