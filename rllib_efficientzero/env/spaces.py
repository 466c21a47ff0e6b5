"""Which observation and action spaces EfficientZero plays, as one sentence per refusal."""

from __future__ import annotations

import gymnasium as gym

from rllib_efficientzero.env.checks import ACTION_MASK, OBSERVATIONS

SUPPORTED = (
    "Supported are Discrete actions that begin at 0, and Box observations that are vectors (size,) or images "
    "(height, width, channels), alone or in a Dict of 'observations' and 'action_mask'."
)


def space_problem(observation_space: gym.Space, action_space: gym.Space) -> str | None:
    """Why an environment with these spaces cannot be played, with what could be; None if it can."""
    problem = _action_problem(action_space) or _observation_problem(observation_space, action_space)
    return f"{problem}. {SUPPORTED}" if problem else None


def _action_problem(space: gym.Space) -> str | None:
    if not isinstance(space, gym.spaces.Discrete):
        return f"EfficientZero cannot act in the action space {space}"
    if space.start != 0:
        return f"EfficientZero cannot act in {space}, whose actions begin at {space.start}"
    return None


def _observation_problem(space: gym.Space, action_space: gym.Space) -> str | None:
    if isinstance(space, gym.spaces.Dict):
        if set(space.spaces) != {OBSERVATIONS, ACTION_MASK}:
            return f"EfficientZero cannot read a Dict observation with the keys {sorted(space.spaces)}"
        mask = space.spaces[ACTION_MASK]
        if not isinstance(mask, gym.spaces.Box | gym.spaces.MultiBinary) or mask.shape != (action_space.n,):
            return f"the action_mask {mask} does not have one entry for each of {action_space.n} actions"
        space = space.spaces[OBSERVATIONS]
    if not isinstance(space, gym.spaces.Box):
        return f"EfficientZero cannot read observations of {space}"
    if len(space.shape) not in (1, 3):
        return f"EfficientZero cannot read observations of shape {space.shape}"
    if 0 in space.shape:
        return f"observations of shape {space.shape} are empty"
    return None
