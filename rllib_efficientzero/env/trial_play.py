"""Plays an environment briefly with random legal actions, and checks everything that it returns."""

from __future__ import annotations

import dataclasses
import inspect
import math
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_efficientzero.env import checks
from rllib_efficientzero.env.spaces import UnsupportedSpaceError, View, views

SEED = 17
REPLAYED_STEPS = 20
"""So many steps are played twice with the same seed."""
FEWEST_STEPS = 5
"""An episode plays at least so many steps, however long they take."""
LONGEST_EPISODE = 2_000
RESET = "reset(self, *, seed=None, options=None)"
LARGEST_IMAGE_FLOAT = 10.0
"""Images of floats should be about 0 to 1; larger values than this one are warned about."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something about an environment that should be changed."""

    problem: str
    """a clause, without a full stop"""
    cure: str
    """a clause that says what to do"""
    is_error: bool = True
    """whether it prevents playing; else it makes learning worse"""
    in_play: bool = True
    """whether it was found while playing; else the environment cannot be made, or has unsupported spaces"""

    def __str__(self) -> str:
        return f"{self.problem}{'' if self.problem.endswith('?') else ':'} {self.cure}."


@dataclasses.dataclass
class Examination:
    """The findings about an environment, and measurements made while playing it."""

    findings: list[Finding] = dataclasses.field(default_factory=list)
    observations: str = ""
    """the converted observations, such as "images 96 x 96 x 3"; empty if the environment could not be made"""
    actions: str = ""
    spaces: tuple[gym.Space, gym.Space] | None = None
    """converted spaces of observations and of actions, see `spaces.views`"""
    steps: int = 0
    env_seconds: float = 0.0
    """spent inside the environment"""
    seeded_resets_s: float = 0.0
    """the part of `env_seconds` in resets with a seed, some of which load the environment anew"""
    rewards: list[float] = dataclasses.field(default_factory=list)
    returns: list[float] = dataclasses.field(default_factory=list)
    """of episodes that ended"""

    @property
    def steps_per_second(self) -> float:
        """Speed of the environment alone, including resets without a seed."""
        seconds = self.env_seconds - self.seeded_resets_s
        return self.steps / seconds if seconds > 0 else math.inf


class BrokenError(Exception):
    """The environment cannot be played further; carries the finding that says why."""

    def __init__(self, problem: str, cure: str, *, in_play: bool = True) -> None:
        super().__init__(problem)
        self.finding = Finding(problem, cure, in_play=in_play)


class Player:
    """Plays an environment as an EnvRunner would, and checks everything that it returns."""

    def __init__(
        self, env: gym.Env, examination: Examination, *, has_time_limit: bool, representation: str = "auto"
    ) -> None:
        """`representation` is that of `spaces.action_view`. Raises BrokenError if the spaces are not supported."""
        self._env = env
        self._has_time_limit = has_time_limit
        self._examination = examination
        self._spaces = env.observation_space, env.action_space
        self._actions, view = _views(env, representation)
        self._check = checks.observation_check(env.observation_space)
        self._generator = np.random.default_rng(SEED)
        self.lengths: list[tuple[int, bool]] = []
        """steps of each episode that ended, and whether it was terminated"""
        self._warnings: dict[str, Finding] = {}
        examination.observations, examination.actions = _describe_view(view.space), _describe_actions(self._actions)
        examination.spaces = view.space, self._actions.space
        self._images = _is_float_image(view.space)

    @property
    def warnings(self) -> list[Finding]:
        """The first warning of each kind."""
        return list(self._warnings.values())

    def play(self, max_steps: int, seconds: float) -> None:
        """Plays twice with the same seed, then on until the steps or the time (excluding the first reset) run out."""
        self._reset(SEED)
        deadline = time.monotonic() + seconds
        first = self._episode(min(REPLAYED_STEPS, max_steps), deadline, seed=SEED)
        self._generator = np.random.default_rng(SEED)
        again = self._episode(len(first) - 1, deadline, seed=SEED)
        if not _are_equal(first[: len(again)], again):
            self._warn(
                "seed",
                "the environment plays differently each time it is reset with the same seed",
                "call super().reset(seed=seed) first in reset() and draw from self.np_random only",
            )
        while self._examination.steps < max_steps and time.monotonic() < deadline:
            self._episode(max_steps - self._examination.steps, deadline, seed=None)

    def _episode(self, max_steps: int, deadline: float, *, seed: int | None) -> list[Any]:
        """Plays to the episode's end, `max_steps` or the deadline; returns (observation, reward) of the reset and of
        each step."""
        observation = self._reset(seed)
        history: list[Any] = [(_copied(observation), 0.0)]
        total, length, done = 0.0, 0, False
        most = min(max_steps, LONGEST_EPISODE)
        while not done and length < most and (length < FEWEST_STEPS or time.monotonic() < deadline):
            observation, reward, terminated, truncated = self._step(observation, length + 1)
            total, length, done = total + reward, length + 1, terminated or truncated
            history.append((_copied(observation), reward))
            self._examination.rewards.append(reward)
        if done:
            self._examination.returns.append(total)
            self.lengths.append((length, terminated))
        elif length >= LONGEST_EPISODE and not self._has_time_limit:
            self._warn(
                "endless",
                f"an episode has not ended after {LONGEST_EPISODE:,} steps",
                "set a time limit (max_episode_steps of gymnasium.make or register, or truncated=True)",
            )
        return history

    def _reset(self, seed: int | None) -> Any:
        spent_before = self._examination.env_seconds
        try:
            result = self._timed(lambda: self._env.reset(seed=seed))
        except Exception as error:
            takes_seed = not isinstance(error, TypeError) or _takes_seed(self._env)
            cure = "reset() must work at any time" if takes_seed else f"declare it as {RESET}"
            raise BrokenError(f"reset() raised {describe(error)}", cure) from error
        if seed is not None:
            self._examination.seeded_resets_s += self._examination.env_seconds - spent_before
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
            raise BrokenError(
                f"reset() returned {_kind(result)}",
                "return the observation and a dict of infos: `return observation, {}`",
            )
        if (self._env.observation_space, self._env.action_space) != self._spaces:
            raise BrokenError("reset() changed the environment's spaces", "fix both spaces in __init__")
        self._look_at(result[0], "reset()")
        return result[0]

    def _step(self, observation: Any, number: int) -> tuple[Any, float, bool, bool]:
        where = f"step {number} of an episode"
        action = self._choose(observation)
        try:
            result = self._timed(lambda: self._env.step(action))
        except Exception as error:
            raise BrokenError(
                f"step({action}) raised {describe(error)} in {where}",
                "every action of the action space (that the action_mask allows) must be possible",
            ) from error
        self._examination.steps += 1
        if not (isinstance(result, tuple) and len(result) == 5):
            cure = "return observation, reward, terminated, truncated, info"
            raise BrokenError(
                f"step() returned {_kind(result)}", f"{cure} (the four values of the old gym are not enough)"
            )
        following, reward, terminated, truncated, info = result
        if problem := checks.reward_problem(reward):
            raise BrokenError(f"{problem} in {where}", "return a finite number for every step")
        for name, value in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(value, bool | np.bool_):
                raise BrokenError(f"{name} is {value!r} in {where}", "return True or False")
        if not isinstance(info, dict):
            raise BrokenError(
                f"the info is a {type(info).__name__} in {where}", "return a dict, {} if there is nothing to say"
            )
        self._look_at(following, where, is_last=bool(terminated or truncated))
        if terminated and info.get("TimeLimit.truncated"):
            self._warn(
                "limit",
                "an episode at its time limit is reported as terminated (the info says TimeLimit.truncated)",
                "return terminated=False, truncated=True there, so that its value goes on",
            )
        return following, float(reward), bool(terminated), bool(truncated)

    def _timed(self, call: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        result = call()
        self._examination.env_seconds += time.perf_counter() - begun
        return result

    def _choose(self, observation: Any) -> Any:
        """A random legal action, in the environment's own action space."""
        space = self._actions.space
        if not isinstance(space, gym.spaces.Discrete):
            space.seed(int(self._generator.integers(2**31)))
            sample = space.sample()
        else:
            legal = np.arange(space.n)
            if isinstance(observation, dict) and checks.ACTION_MASK in observation:
                legal = np.flatnonzero(observation[checks.ACTION_MASK])
            sample = np.int64(self._generator.choice(legal))
        return sample if self._actions.transform is None else self._actions.transform(sample)

    def _look_at(self, observation: Any, where: str, *, is_last: bool = False) -> None:
        problem = self._check(observation)
        if problem:
            raise BrokenError(f"{problem} in {where}", _cure_of(problem))
        if not is_last and (problem := checks.mask_problem(observation)):
            raise BrokenError(f"{problem}, in {where}", "allow an action, or end the episode one step earlier")
        mask = observation.get(checks.ACTION_MASK) if isinstance(observation, dict) else None
        if mask is not None and not np.isin(mask, (0, 1)).all():
            raise BrokenError(
                f"the action_mask has other values than 0 and 1 in {where}", "write 1 for each legal action, else 0"
            )
        wide = _wider(observation, self._spaces[0])
        if wide:
            self._warn("dtype", f"the observation has dtype {wide[0]}, its space {wide[1]}", f"return it as {wide[1]}")
        if self._images and mask is None and float(np.max(observation)) > LARGEST_IMAGE_FLOAT:
            self._warn(
                "scale",
                f"images of floats go up to {float(np.max(observation)):g}, which networks take as they are",
                "return uint8 (0 to 255, which is scaled), or floats of about 0 to 1",
            )

    def _warn(self, kind: str, problem: str, cure: str) -> None:
        self._warnings.setdefault(kind, Finding(problem, cure, is_error=False))


def _views(env: gym.Env, representation: str) -> tuple[View, View]:
    try:
        return views(env.action_space, env.observation_space, representation)
    except UnsupportedSpaceError as error:
        problem, _, cure = str(error).partition(". ")
        raise BrokenError(problem, cure.rstrip("."), in_play=False) from error


def _takes_seed(env: gym.Env) -> bool:
    """Whether `reset` of the environment, and of each environment that it wraps, accepts the arguments it gets."""
    given = {"seed": None}
    while True:
        try:
            inspect.signature(env.reset).bind(**given)
        except TypeError:
            return False
        except ValueError:
            pass  # compiled functions may have no signature
        if not isinstance(env, gym.Wrapper):
            return True
        env, given = env.env, {"seed": None, "options": None}


# --- Words ------------------------------------------------------------------------------------------------------------


def _cure_of(problem: str) -> str:
    if "shape" in problem or "keys" in problem:
        return "let the observation_space say what observations look like"
    if "dtype" in problem or "no array" in problem or "no dict" in problem:
        return "return what the observation_space declares, such as np.asarray(observation, np.float32)"
    if "outside its space" in problem:
        return "clip the observation, or widen the space (its bounds may be -np.inf and np.inf)"
    return "return finite numbers of the observation_space only"


def _describe_view(space: gym.Space) -> str:
    if isinstance(space, gym.spaces.Dict):
        return f"{_describe_view(space[checks.OBSERVATIONS])} with an action_mask"
    if len(space.shape) == 1:
        return f"vectors of {space.shape[0]}"
    return f"images {' x '.join(map(str, space.shape))}"


def _describe_actions(view: View) -> str:
    if not isinstance(view.space, gym.spaces.Discrete):
        return str(view.space)
    return "1 action" if view.space.n == 1 else f"{view.space.n} actions"


def _is_float_image(space: gym.Space) -> bool:
    return isinstance(space, gym.spaces.Box) and len(space.shape) == 3 and space.dtype.kind == "f"


def _wider(observation: Any, space: gym.Space) -> tuple[np.dtype, np.dtype] | None:
    """The dtypes of an observation and of its space, if they differ."""
    if isinstance(observation, dict) and isinstance(space, gym.spaces.Dict):
        found = (_wider(value, space[key]) for key, value in observation.items())
        return next((pair for pair in found if pair), None)
    if isinstance(observation, np.ndarray) and isinstance(space, gym.spaces.Box) and observation.dtype != space.dtype:
        return observation.dtype, space.dtype
    return None


def _copied(observation: Any) -> Any:
    """A copy of an observation: some environments write every observation into the same array."""
    if isinstance(observation, np.ndarray):
        return observation.copy()
    if isinstance(observation, dict):
        return {key: _copied(value) for key, value in observation.items()}
    if isinstance(observation, tuple):
        return tuple(map(_copied, observation))
    return observation


def _are_equal(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_are_equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_are_equal, first, second))
    return bool(np.array_equal(first, second))


def _kind(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"


def describe(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
