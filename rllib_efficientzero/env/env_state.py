"""The state of running environments, taken out and put back, so that a resumed run goes on within an episode.

What is taken are the instance attributes of every layer (vector, wrappers, environment), and ALE's own state. That is
everything for environments written in Python. One whose state is behind an attribute that cannot be pickled, and one
that runs in another process, give none: `capture` returns None, and its episodes must begin anew.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import io
import logging
import pickle
import types
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import SyncVectorEnv, VectorEnv, VectorWrapper
from ray import cloudpickle

from rllib_efficientzero.env.guard import GuardPolicy

logger = logging.getLogger(__name__)

_NOT_STATE = (
    EnvSpec,
    GuardPolicy,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    functools.partial,
    type,
)
"""How an environment was made, and what it does: a new one has them already."""
_ENV_FUNCTIONS = "env_fns"
_MAX_DEPTH = 8
"""Of settings within settings; objects may refer to each other in circles."""


def capture(env: VectorEnv) -> bytes | None:
    """The state of a vector of environments; None if it cannot be had."""
    layers = _layers(env)
    if layers is None:
        return None
    emulators = {id(emulator): index for index, emulator in _emulators(layers).items()}
    buffer = io.BytesIO()
    try:
        states = {index: emulator.cloneState(include_rng=True) for index, emulator in _emulators(layers).items()}
        pickler = _Pickler(buffer, {id(layer): index for index, layer in enumerate(layers)}, emulators)
        pickler.dump(([_attributes(layer) for layer in layers], states))
    except Exception as error:
        # Whatever an environment's attributes raise when they are pickled; the caller says what follows from it.
        logger.info("the state of %s cannot be saved: %s: %s", env.spec, type(error).__name__, error)
        return None
    return buffer.getvalue()


def restore(env: VectorEnv, state: bytes) -> None:
    """Puts a state of `capture` into newly made environments of the same kind.

    Args:
        env: made in the same way as the one whose state was captured.
        state: trusted bytes; they are unpickled.

    Raises:
        ValueError: the environments are made differently.
    """
    layers = _layers(env)
    if layers is None:
        raise ValueError(f"{env} cannot take a saved state")
    attributes, states = _Unpickler(io.BytesIO(state), layers).load()
    if len(attributes) != len(layers):
        raise ValueError(f"the saved environments have {len(attributes)} layers, {env} has {len(layers)}")
    for layer, values in zip(layers, attributes, strict=True):
        vars(layer).update(values)
    for index, emulator_state in states.items():
        vars(layers[index])["ale"].restoreState(emulator_state)


def settings_of(config: Any) -> dict[str, str]:
    """Name -> value, as text, of every setting that decides which environments a vector is made of.

    A state belongs to environments that are made alike: put into others, it would undo their settings.

    Args:
        config: of the EnvRunner.
    """
    described = {
        "env": _described(config.env),
        "num_envs_per_env_runner": _described(config.num_envs_per_env_runner),
        "gym_env_vectorize_mode": _described(gym.VectorizeMode(config.gym_env_vectorize_mode)),
    }
    return described | {f"env_config[{key!r}]": _described(value) for key, value in config.env_config.items()}


def _described(value: Any, depth: int = 0) -> str:
    """Text that is equal for equal values, in another process too, where an object's own may have its address."""
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, enum.Enum | np.generic):
        value = value.value if isinstance(value, enum.Enum) else value.item()
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if depth == _MAX_DEPTH:
        return "..."
    if isinstance(value, np.ndarray):
        return f"array of {value.dtype}{value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, Mapping):
        items = sorted(f"{_described(key, depth + 1)}: {_described(item, depth + 1)}" for key, item in value.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_described(item, depth + 1) for item in value)}]"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(_described(item, depth + 1) for item in value))}}}"
    return f"{_described(type(value))} {_described(getattr(value, '__dict__', {}), depth + 1)}"


def _layers(env: Any) -> list[Any] | None:
    """Vector wrappers, the vector, and each environment with its wrappers, from the outside in; None if some of them
    are out of reach."""
    layers: list[Any] = []
    while isinstance(env, VectorWrapper):
        layers.append(env)
        env = env.env
    if not isinstance(env, SyncVectorEnv):
        return None
    layers.append(env)
    for single in env.envs:
        while isinstance(single, gym.Wrapper):
            layers.append(single)
            single = single.env
        layers.append(single)
    return layers


def _attributes(layer: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(layer).items()
        if name != _ENV_FUNCTIONS and not isinstance(value, _NOT_STATE)
    }


def _emulators(layers: list[Any]) -> dict[int, Any]:
    """Index of the layer -> its Atari emulator, which keeps its state in C++."""
    return {index: layer.ale for index, layer in enumerate(layers) if _is_emulator(vars(layer).get("ale"))}


def _is_emulator(value: Any) -> bool:
    return type(value).__name__ == "ALEInterface"


class _Pickler(cloudpickle.Pickler):
    """Writes environments and emulators as references, to be found again among the new ones."""

    def __init__(self, file: io.BytesIO, layers: dict[int, int], emulators: dict[int, int]) -> None:
        super().__init__(file)
        self._indices, self._emulators = layers, emulators

    def persistent_id(self, obj: Any) -> tuple[str, int] | None:
        if isinstance(obj, gym.Env | VectorEnv):
            return "layer", self._indices[id(obj)]
        if _is_emulator(obj):
            return "emulator", self._emulators[id(obj)]
        return None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, layers: list[Any]) -> None:
        super().__init__(file)
        self._layers = layers

    def persistent_load(self, pid: tuple[str, int]) -> Any:
        kind, index = pid
        return self._layers[index] if kind == "layer" else vars(self._layers[index])["ale"]
