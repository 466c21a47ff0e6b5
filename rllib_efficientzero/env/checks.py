"""Checks of what an environment returns, before it is stored. Each returns a sentence, or None if all is well.

Rewards and observations are checked in the form in which the environment returned them. A vector environment would cast
them, turn a missing reward into NaN, or fail without saying which environment it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

LARGEST_REWARD = 1e30
"""Sums of a few larger rewards would overflow float32, in which rewards are stored."""
ROUNDING = 1e-5
"""By this fraction of 1 + |bound| an observation may exceed a bound: bounds were often rounded to float32."""

OBSERVATIONS, ACTION_MASK = "observations", "action_mask"
"""Keys of RLlib's convention for observations that come with the legal actions."""

Check = Callable[[Any], "str | None"]


def reward_problem(reward: Any) -> str | None:
    """Says what is wrong with a reward."""
    value = reward if type(reward) is float else _number(reward)
    if value is None:
        return f"the reward {_short(reward)} is not a number"
    if not math.isfinite(value):
        return f"the reward is {value}"
    if abs(value) > LARGEST_REWARD:
        return f"the reward {value:g} is beyond {LARGEST_REWARD:g}, which float32 cannot add up"
    return None


def mask_problem(observation: Any) -> str | None:
    """Says so if no action is legal in an observation that is not the last of its episode."""
    if isinstance(observation, Mapping) and ACTION_MASK in observation and not np.any(observation[ACTION_MASK]):
        return "no action is legal (action_mask is all zeros), yet the episode goes on"
    return None


def observation_check(space: gym.Space) -> Check:
    """Returns a function that says what is wrong with an observation of `space`; for arrays it takes microseconds."""
    if isinstance(space, gym.spaces.Box):
        return _box_check(space)
    if isinstance(space, gym.spaces.Dict):
        return _dict_check(space)
    return lambda observation: None if space.contains(observation) else f"{_short(observation)} is not in {space}"


def _box_check(space: gym.spaces.Box) -> Check:
    shape, dtype = space.shape, space.dtype
    low, high = _bounds(space)
    limits: tuple[Any, Any] | None = (low, high)
    if dtype.kind in "iub":
        # If the space allows every value of its dtype, there is nothing to compare.
        info = np.iinfo(dtype) if dtype.kind != "b" else None
        if info is None or (np.all(space.low == info.min) and np.all(space.high == info.max)):
            limits = None

    def check(observation: Any) -> str | None:
        if not isinstance(observation, np.ndarray):
            return f"the observation is no array but {_short(observation)}"
        if observation.shape != shape:
            return f"the observation has shape {observation.shape}, its space has {shape}"
        same_type = observation.dtype == dtype
        if not same_type and not np.can_cast(observation.dtype, dtype, "same_kind"):
            return f"the observation has dtype {observation.dtype}, its space has {dtype}"
        if same_type and limits is None:
            return None
        # NaN compares as False, and the bounds are finite: this finds NaN and infinities too.
        inside = (observation >= low) & (observation <= high)
        return None if inside.all() else _outside(observation, inside, space)

    return check


def _bounds(space: gym.spaces.Box) -> tuple[Any, Any]:
    """Lowest and highest values, finite, as scalars where they are the same everywhere (which compares faster)."""
    low, high = space.low, space.high
    if space.dtype.kind == "f":
        # Unbounded spaces too get bounds, as networks compute in float32.
        largest = min(np.finfo(space.dtype).max, np.finfo(np.float32).max)
        low, high = np.maximum(low, -largest), np.minimum(high, largest)
        # The tolerance is added in float64, where it cannot overflow.
        low, high = low.astype(np.float64), high.astype(np.float64)
        low, high = low - ROUNDING * (1 + np.abs(low)), high + ROUNDING * (1 + np.abs(high))
        low, high = np.maximum(low, -float(largest)), np.minimum(high, float(largest))
        # Back in the space's dtype, which observations usually have, so that comparing casts nothing.
        low, high = low.astype(space.dtype), high.astype(space.dtype)
    return _scalar_if_uniform(low), _scalar_if_uniform(high)


def _scalar_if_uniform(bound: np.ndarray) -> Any:
    return bound.flat[0] if bound.size and np.all(bound == bound.flat[0]) else bound


def _outside(observation: np.ndarray, inside: np.ndarray, space: gym.spaces.Box) -> str:
    index = tuple(int(i) for i in np.argwhere(~inside)[0])
    value = observation[index]
    where = f"element {index if len(index) != 1 else index[0]} of the observation is {value}"
    if not np.isfinite(value):
        return where
    return f"{where}, outside its space [{space.low[index]}, {space.high[index]}]"


def _dict_check(space: gym.spaces.Dict) -> Check:
    checks = {key: observation_check(inner) for key, inner in space.spaces.items()}

    def check(observation: Any) -> str | None:
        if not isinstance(observation, Mapping):
            return f"the observation is no dict but {_short(observation)}"
        if observation.keys() != checks.keys():
            return f"the observation has the keys {sorted(observation)}, its space has {sorted(checks)}"
        for key, inner in checks.items():
            if problem := inner(observation[key]):
                return f"in {key!r}, {problem}"
        return None

    return check


def _number(value: Any) -> float | None:
    try:
        return float(value) if np.ndim(value) == 0 and not isinstance(value, str) else None
    except (TypeError, ValueError):
        return None


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
