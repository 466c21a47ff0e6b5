"""Makes the environment that a policy was trained in, to play it there, and draws what it shows."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from rllib_efficientzero.env.dotted import call_maker, dotted_path_of, import_maker, is_dotted_path
from rllib_efficientzero.env.minigrid import make_pixels
from rllib_efficientzero.env.named import named_maker, named_protocol
from rllib_efficientzero.env.spaces import UnsupportedSpaceError, adapt
from rllib_efficientzero.playing.frame_stack import OBSERVATIONS

if TYPE_CHECKING:
    from rllib_efficientzero.mcts import SearchResult
    from rllib_efficientzero.policy import Policy

TRUSTED_MODULES = ("ale_py", "minigrid")
"""Modules that may be imported because a policy's file names them; the user must allow any other by `--env`."""
TRUSTED_MAKERS = (dotted_path_of(make_pixels),)


class PlayError(ValueError):
    """The policy's environment cannot be played here; the message is one sentence that says why."""


def make_environment(policy: Policy, *, env: str | None = None, env_config: Mapping[str, Any] | None = None) -> gym.Env:
    """Makes an environment in which the policy can act; it draws pictures if it can.

    Benchmarks are played by their evaluation protocol: full lives, raw rewards.

    Args:
        policy: says which environment, and how it was played.
        env: in place of the policy's: a gymnasium id (`module:id` imports the module first), a benchmark's name, or the
            dotted path of a class or function of `env_config`.
        env_config: settings over those of the policy's protocol.

    Raises:
        PlayError: the policy names no environment that can be made here, or the spaces are not those it was trained on.
    """
    protocol = policy.description.get("protocol")
    protocol = protocol if isinstance(protocol, dict) else {}
    name = env or protocol.get("env")
    if not isinstance(name, str):
        raise PlayError("the policy does not say in which environment it was trained: name one with --env.")
    if env is None:
        _check_trusted(name)
    try:
        settings = {**_settings(name, policy.description, protocol), **(env_config or {})}
        representation = "enumerated" if isinstance(policy.action_space, gym.spaces.Discrete) else "sampled"
        made = adapt(_make(name, settings), representation)
    except UnsupportedSpaceError as error:
        raise PlayError(str(error)) from error
    except gym.error.UnregisteredEnv as error:
        raise PlayError(
            f"gymnasium knows no environment {name!r}: name what makes it with --env, an id or a path such as "
            "my_envs.make_env."
        ) from error
    except Exception as error:
        # Whatever a foreign constructor raises.
        message = " ".join(str(error).split()) or type(error).__name__
        raise PlayError(f"the environment {name!r} cannot be made here: {message}") from error
    _check_spaces(made, policy, name)
    return made


def raw_picture(env: gym.Env, observation: Any) -> np.ndarray:
    """Returns what a person would see, u8 `[H, W, 3]`: the emulator's or renderer's frame, else a drawn observation."""
    ale = getattr(env.unwrapped, "ale", None)
    if ale is not None:
        return np.asarray(ale.getScreenRGB())
    if env.render_mode == "rgb_array":
        try:
            drawn = np.asarray(env.render())
        except gym.error.DependencyNotInstalled:
            drawn = np.empty(0)
        if drawn.ndim == 3 and drawn.shape[2] == 3 and drawn.dtype == np.uint8:
            return drawn
    return _picture_of(observation)


def picture_of_frame(frame: np.ndarray) -> np.ndarray:
    """u8 `[H, W, C]` as the policy sees it -> `[H, W, 3]`: the last three channels, or of fewer the last in grey."""
    return np.repeat(frame[..., -1:], 3, axis=2) if frame.shape[2] < 3 else np.ascontiguousarray(frame[..., -3:])


def names_at(env: gym.Env, result: SearchResult, row: int) -> list[str]:
    """Names the A actions that a search chose between, sampled ones by their components; see `action_names`."""
    if result.candidates is None:
        return action_names(env, result.policy.shape[1])
    return [vector_name(candidate) for candidate in result.candidates[row]]


def vector_name(action: Iterable[float]) -> str:
    """Returns the name of an action that is a vector of numbers."""
    return " ".join(f"{number:.3g}" for number in action)


def action_names(env: gym.Env, num_actions: int) -> list[str]:
    """Returns the environment's names of its actions if it has any, else their indices."""
    meanings = getattr(env.unwrapped, "get_action_meanings", None)
    names = list(meanings()) if callable(meanings) else []
    return [str(name) for name in names] if len(names) == num_actions else [str(index) for index in range(num_actions)]


def _check_trusted(name: str) -> None:
    """Raises PlayError if a module that is not trusted would be imported only because the policy's file names it."""
    is_dotted = is_dotted_path(name)
    module, is_imported, _ = name.rpartition("." if is_dotted else ":")
    if is_imported and not (name in TRUSTED_MAKERS if is_dotted else module in TRUSTED_MODULES):
        raise PlayError(
            f"the policy's environment {name!r} would import the module {module!r}; allow it by --env {name}."
        )


def _settings(name: str, description: Mapping[str, Any], protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings to make the evaluation environment with; for a benchmark, the fields of its protocol."""
    described = protocol.get("evaluation") or protocol.get("training")
    known = named_protocol(name, {})
    if known is None:
        env_config = description.get("evaluation_env_config", description.get("env_config"))
        return dict(env_config) if isinstance(env_config, dict) and name == protocol.get("env") else {}
    if not isinstance(described, dict):
        return dict(known.evaluation_settings)
    fields = known.__dataclass_fields__.keys() - {"game", "task"}
    return {key: value for key, value in described.items() if key in fields}


def _make(name: str, settings: Mapping[str, Any]) -> gym.Env:
    if is_dotted_path(name):
        return call_maker(import_maker(name), settings)
    maker = named_maker(name)
    if maker is not None:
        return maker(settings)
    module, colon, bare = name.partition(":")
    if colon:
        importlib.import_module(module)
    # Neither screen nor sound is needed: without these, SDL would look for devices and print complaints.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    with warnings.catch_warnings():
        # Environments that cannot draw warn of it; the observation is drawn instead.
        warnings.simplefilter("ignore")
        try:
            return gym.make(bare or name, **{"render_mode": "rgb_array", **settings})
        except TypeError:
            return gym.make(bare or name, **settings)


def _check_spaces(env: gym.Env, policy: Policy, name: str) -> None:
    expected = policy.observation_space
    found, wanted = env.observation_space, expected
    if isinstance(found, gym.spaces.Dict) and isinstance(wanted, gym.spaces.Dict):
        found, wanted = found[OBSERVATIONS], wanted[OBSERVATIONS]
    if found.shape is None or wanted.shape is None or tuple(found.shape) != tuple(wanted.shape)[1:]:
        env.close()
        raise PlayError(f"{name!r} has observations of {found}, and the policy was trained on stacks of {wanted}.")
    if env.action_space != policy.action_space:
        env.close()
        raise PlayError(f"{name!r} has the actions {env.action_space}, and the policy knows {policy.action_space}.")


def _picture_of(observation: Any) -> np.ndarray:
    """Draws an observation: an image as it is, a vector as bars around a line."""
    if isinstance(observation, dict):
        observation = observation[OBSERVATIONS]
    values = np.asarray(observation)
    if values.ndim == 3:
        return picture_of_frame(values if values.dtype == np.uint8 else np.clip(values * 255, 0, 255).astype(np.uint8))
    picture = np.full((160, 240, 3), 24, np.uint8)
    values = np.tanh(np.nan_to_num(values.ravel()[:64].astype(np.float32)))
    width = 240 // max(1, len(values))
    for index, value in enumerate(values):
        top, bottom = sorted((80, round(80 - 70 * float(value))))
        picture[top : bottom + 1, index * width + 1 : (index + 1) * width] = (90, 160, 250)
    return picture
