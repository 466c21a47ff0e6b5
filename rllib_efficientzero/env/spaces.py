"""The spaces that EfficientZero supports, and how an environment's own spaces are converted to them.

The converted actions are `Discrete` from 0 on, `MultiDiscrete` from 0 on or `Box(-1, 1, [D])`. The converted
observations are vectors `[D]` or images `[H, W, C]`, alone or in a dict of `observations` and `action_mask`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from rllib_efficientzero.env.checks import ACTION_MASK, OBSERVATIONS

MAX_JOINT_ACTIONS = 1024
"""A MultiDiscrete space with at most so many combinations can be played as one Discrete action per combination."""
SMALLEST_IMAGE = 8
"""The smallest side of an image, in pixels; smaller arrays are flattened to vectors."""

SUPPORTED = (
    "Supported are Discrete, MultiDiscrete, MultiBinary and bounded Box actions, and observations that are vectors, "
    "images, or made of discrete parts, alone or in a Dict with an 'action_mask'."
)

Transform = Callable[[Any], Any]


class View(NamedTuple):
    """A converted space, and the function that converts observations to it, or actions back to the environment's.

    Functions of observations work on the last axes, so that they accept single observations and batches alike, except
    those of spaces that are not Box, which accept only single ones.
    """

    space: gym.Space
    transform: Transform | None
    """None if values stay as they are."""
    batched: bool = True
    """whether the function accepts batches of observations"""


class UnsupportedSpaceError(ValueError):
    """A space cannot be played; the message names what can be."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{' '.join(problem.split())}. {SUPPORTED}")


def adapt(env: gym.Env, representation: str = "auto") -> gym.Env:
    """Wraps an environment so that its spaces are the converted ones; `representation` is that of `action_view`.

    Raises:
        UnsupportedSpaceError: its spaces cannot be converted.
    """
    actions, observations = views(env.action_space, env.observation_space, representation)
    if observations.transform is not None:
        env = gym.wrappers.TransformObservation(env, observations.transform, observations.space)
    if actions.transform is not None:
        env = gym.wrappers.TransformAction(env, actions.transform, actions.space)
    return env


def adapt_vector(env: gym.vector.VectorEnv, representation: str = "auto") -> gym.vector.VectorEnv:
    """`adapt` for an environment that is itself a vector."""
    single = env.single_observation_space
    actions, observations = views(env.single_action_space, single, representation)
    if not observations.batched or actions.transform is not None:
        raise UnsupportedSpaceError(
            f"a vector environment with observations of {single} and actions of {env.single_action_space} can only be "
            "played with gym_env_vectorize_mode 'sync' or 'async'"
        )
    if observations.transform is None:
        return env
    return gym.wrappers.vector.TransformObservation(
        env,
        observations.transform,
        gym.vector.utils.batch_space(observations.space, env.num_envs),
        observations.space,
    )


def views(actions: gym.Space, observations: gym.Space, representation: str = "auto") -> tuple[View, View]:
    """The converted spaces of actions and observations; `representation` is that of `action_view`.

    Raises:
        UnsupportedSpaceError: one of them is not supported, or not in combination with the other.
    """
    found = action_view(actions, representation), observation_view(observations, actions)
    if isinstance(found[1].space, Dict) and not isinstance(found[0].space, Discrete):
        raise UnsupportedSpaceError(
            "an action_mask needs action_representation 'enumerated': sampled actions have none"
        )
    return found


# --- Actions ---------------------------------------------------------------------------------------------------------


def action_view(space: gym.Space, representation: str = "auto") -> View:
    """Converts an action space to one that the search handles: whole numbers from 0 on, or values within [-1, 1].

    Args:
        space: the environment's.
        representation: "enumerated": Discrete; "sampled": MultiDiscrete or Box(-1, 1, [D]); "auto": enumerated if the
            space is Discrete or has at most `MAX_JOINT_ACTIONS` actions, else sampled.
    """
    if isinstance(space, Box):
        return _box_actions(space, representation)
    if isinstance(space, Discrete):
        if representation == "sampled":
            return View(MultiDiscrete([space.n]), functools.partial(_only_component, start=space.start))
        return View(Discrete(space.n), None if space.start == 0 else functools.partial(_shifted, start=space.start))
    if isinstance(space, MultiBinary) and len(space.shape) == 1:
        return _choices(space, np.full(space.shape, 2), np.zeros(space.shape, space.dtype), representation)
    if isinstance(space, MultiDiscrete) and space.nvec.ndim == 1:
        return _choices(space, space.nvec, space.start, representation)
    raise UnsupportedSpaceError(f"EfficientZero cannot act in the action space {space}")


def _choices(space: gym.Space, sizes: np.ndarray, start: np.ndarray, representation: str) -> View:
    """One Discrete action per combination, the last component changing fastest; or, sampled, a MultiDiscrete space."""
    combinations = math.prod(int(size) for size in sizes)
    if representation == "sampled" or (representation == "auto" and combinations > MAX_JOINT_ACTIONS):
        return View(MultiDiscrete(sizes), functools.partial(_shifted_components, start=start))
    if combinations > MAX_JOINT_ACTIONS:
        raise UnsupportedSpaceError(
            f"the action space {space} has {combinations} combinations, more than {MAX_JOINT_ACTIONS}, too many for "
            "action_representation 'enumerated'"
        )
    return View(Discrete(combinations), functools.partial(_components, sizes=sizes, start=start))


def _box_actions(space: Box, representation: str) -> View:
    """Vectors within [-1, 1], where -1 and 1 stand for the lower and upper bound."""
    if representation == "enumerated":
        raise UnsupportedSpaceError(
            f"the actions of {space} cannot be enumerated; action_representation 'sampled' plays them"
        )
    if not space.is_bounded() or 0 in space.shape:
        raise UnsupportedSpaceError(f"EfficientZero cannot act in the action space {space}, which has no bounds")
    played = Box(-1.0, 1.0, (math.prod(space.shape),), np.float32)
    if space == played:
        return View(played, None)
    return View(played, functools.partial(_scaled, low=space.low, high=space.high))


def _shifted(action: Any, *, start: Any) -> Any:
    return action + start


def _only_component(action: Any, *, start: Any) -> Any:
    return action[0] + start


def _shifted_components(action: Any, *, start: np.ndarray) -> np.ndarray:
    return (action + start).astype(start.dtype)


def _scaled(action: np.ndarray, *, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    share = (np.clip(action, -1.0, 1.0).astype(np.float64).reshape(low.shape) + 1.0) / 2.0
    scaled = (1.0 - share) * low + share * high
    if low.dtype.kind in "iu":
        scaled = np.rint(scaled)
    # Rounding to the dtype of the bounds can move a value beyond them.
    return np.clip(scaled.astype(low.dtype), low, high)


def _components(action: Any, *, sizes: np.ndarray, start: np.ndarray) -> np.ndarray:
    return (np.stack(np.unravel_index(int(action), sizes)) + start).astype(start.dtype)


# --- Observations ----------------------------------------------------------------------------------------------------


def observation_view(space: gym.Space, action_space: gym.Space) -> View:
    """Converts an observation space to vectors or images, with the mask of legal actions if there is one."""
    if isinstance(space, Dict) and ACTION_MASK in space.spaces:
        return _masked_view(space, action_space)
    if isinstance(space, Box):
        return _box_view(space)
    if not _has_flat_form(space):
        raise UnsupportedSpaceError(f"EfficientZero cannot read observations of {space}")
    inner = _box_view(gym.spaces.flatten_space(space))
    flatten = functools.partial(gym.spaces.flatten, space)
    return View(inner.space, _after(inner.transform, flatten), batched=False)


def _has_flat_form(space: gym.Space) -> bool:
    """Whether a space consists of numbers and choices. Text does not count: gymnasium's flattening of it is useless."""
    if isinstance(space, Tuple):
        return all(map(_has_flat_form, space.spaces))
    if isinstance(space, Dict):
        return all(map(_has_flat_form, space.spaces.values()))
    return isinstance(space, Box | Discrete | MultiBinary | MultiDiscrete)


def _masked_view(space: Dict, action_space: gym.Space) -> View:
    """A Dict of observations and action_mask, RLlib's convention; the first key may have another name (PettingZoo)."""
    others = [key for key in space.spaces if key != ACTION_MASK]
    if len(others) != 1:
        raise UnsupportedSpaceError(
            f"EfficientZero cannot read a Dict observation with the keys {sorted(space.spaces)}"
        )
    mask, num_actions = space.spaces[ACTION_MASK], _number_of_masked(action_space)
    if not isinstance(mask, Box | MultiBinary) or mask.shape != (num_actions,):
        raise UnsupportedSpaceError(f"the action_mask {mask} does not have one entry for each of {num_actions} actions")
    inner = observation_view(space.spaces[others[0]], action_space)
    view = Dict({OBSERVATIONS: inner.space, ACTION_MASK: Box(0, 1, (num_actions,), np.int8)})
    if view == space:
        return View(view, None)
    return View(view, functools.partial(_masked, key=others[0], transform=inner.transform), batched=inner.batched)


def _number_of_masked(action_space: gym.Space) -> int:
    """The number of entries that a mask must have: one per action, or one per combination of a MultiDiscrete space."""
    try:
        return int(action_view(action_space, "enumerated").space.n)
    except UnsupportedSpaceError as error:
        raise UnsupportedSpaceError(
            f"an action_mask has one entry for each action, of which {action_space} has too many; sampled actions have "
            "no masks"
        ) from error


def _masked(observation: Any, *, key: str, transform: Transform | None) -> dict[str, Any]:
    frames = observation[key]
    return {
        OBSERVATIONS: frames if transform is None else transform(frames),
        ACTION_MASK: np.asarray(observation[ACTION_MASK]).astype(np.int8),
    }


def _box_view(space: Box) -> View:
    steps = _box_steps(space)
    transform: Transform | None = None
    low, high = space.low, space.high
    for step in steps:
        transform, low, high = _after(step, transform), step(low), step(high)
    return View(Box(low, high, dtype=low.dtype) if steps else space, transform)


def _box_steps(space: Box) -> list[Transform]:
    """The functions that, one after the other, turn values of a Box into a vector or an image with channels last."""
    shape = space.shape
    if 0 in shape or len(shape) > 4 or (len(shape) == 4 and shape[0] != 1):
        raise UnsupportedSpaceError(f"EfficientZero cannot read observations of shape {shape}")
    steps: list[Transform] = []
    if space.dtype == np.float64:
        steps.append(functools.partial(_cast, dtype=np.float32))
    if space.dtype.kind == "u" and space.dtype != np.uint8:
        steps.append(functools.partial(_cast, dtype=np.int64))  # torch supports no unsigned dtype but uint8
    if len(shape) == 4:
        steps.append(_without_first_axis)
        shape = shape[1:]
    if len(shape) == 2 and space.dtype == np.uint8:
        steps.append(_with_channel)
        shape = (*shape, 1)
    if len(shape) == 3:
        channels_first = _has_channels_first(shape)
        sides = shape[1:] if channels_first else shape[:2]
        if min(sides) < SMALLEST_IMAGE:
            steps.append(functools.partial(_flat, axes=3))
        elif channels_first:
            steps.append(_channels_last)
    elif len(shape) != 1:
        steps.append(functools.partial(_flat, axes=len(shape)))
    return steps


def _has_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether an image's channels come first: if two adjacent sides are equal, the third axis is that of the channels;
    else the channels are the shorter of the first and last axes."""
    first, middle, last = shape
    if first == middle or middle == last:
        return first != middle
    return first < last


def _after(second: Transform | None, first: Transform | None) -> Transform | None:
    if first is None or second is None:
        return first or second
    return functools.partial(_in_turn, first=first, second=second)


def _in_turn(value: Any, *, first: Transform, second: Transform) -> Any:
    return second(first(value))


def _cast(array: np.ndarray, *, dtype: Any) -> np.ndarray:
    # Bounds of a space that are too large for float32 become infinite. Observations were checked before.
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def _without_first_axis(array: np.ndarray) -> np.ndarray:
    return array.squeeze(axis=-4)


def _with_channel(array: np.ndarray) -> np.ndarray:
    return array[..., None]


def _channels_last(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(array, -3, -1))


def _flat(array: np.ndarray, *, axes: int) -> np.ndarray:
    return array.reshape(*array.shape[: array.ndim - axes], -1)
