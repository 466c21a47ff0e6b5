"""Saving and restoring the state of running environments, so that a resumed run goes on within an episode.

The state consists of the instance attributes of every layer (vector, wrappers, environment), and of ALE's own state.
For environments written in Python that is everything. If an attribute cannot be pickled, or the vector is neither
gymnasium's sync nor its async one, `capture` returns None, and the episodes must begin anew. Environments in separate
processes save and restore their states there (`StatefulEnv`).
"""

from __future__ import annotations

import enum
import functools
import hashlib
import io
import logging
import pickle
import random
import types
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorWrapper
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
"""Types of attributes that say how an environment was made and what it does: a new one has the same."""
_ENV_FUNCTIONS = "env_fns"
_MAX_DEPTH = 8
"""How deep nested settings are described; objects may refer to each other in circles."""


def capture(env: VectorEnv) -> bytes | None:
    """Returns the state of a vector of environments; None if it cannot be saved."""
    try:
        if isinstance(env.unwrapped, AsyncVectorEnv):
            states = env.unwrapped.get_attr(StatefulEnv.STATE)
            return None if None in states else pickle.dumps(states)
        layers = _layers(env)
        return None if layers is None else _capture_layers(layers)
    except Exception as error:
        _log_no_state(env, error)
        return None


def restore(env: VectorEnv, state: bytes) -> None:
    """Puts a state of `capture` into environments of the same kind.

    Args:
        env: made in the same way as the one whose state was captured.
        state: trusted bytes; they are unpickled.

    Raises:
        ValueError: the environments are made differently.
    """
    if isinstance(env.unwrapped, AsyncVectorEnv):
        env.reset()  # The processes remember whether an episode has ended, and only a reset makes them forget it.
        env.unwrapped.set_attr(StatefulEnv.STATE, pickle.loads(state))
        for problem in env.unwrapped.get_attr(StatefulEnv.PROBLEM):
            if problem:
                raise ValueError(problem)
        return
    layers = _layers(env)
    if layers is None:
        raise ValueError(f"{env} cannot take a saved state")
    _restore_layers(layers, state)


class StatefulEnv(gym.Wrapper):
    """An environment in a separate process, whose state other processes can get and set as an attribute."""

    STATE, PROBLEM = "process_state", "restore_problem"

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.restore_problem: str | None = None
        """Why the last state could not be restored; raising an error would end the process."""
        self._has_ended = False
        self._resets_next = False  # A restored episode has ended already, which this vector does not know.

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's; but if the restored episode had ended already, the next step begins a new one."""
        if self._resets_next:
            observation, info = self.reset()
            return observation, 0.0, False, False, info
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._has_ended = terminated or truncated
        return observation, reward, terminated, truncated, info

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """As the environment's."""
        self._has_ended = self._resets_next = False
        return self.env.reset(**kwargs)

    @property
    def process_state(self) -> bytes | None:
        """The state of the environment and of the process's global generators; None if it cannot be saved."""
        try:
            layers = _capture_layers(_single_layers(self.env))
        except Exception as error:
            _log_no_state(self.env, error)
            return None
        generators = random.getstate(), np.random.get_state()  # noqa: NPY002 - it is the one that libraries share
        return pickle.dumps((layers, self._has_ended or self._resets_next, generators))

    @process_state.setter
    def process_state(self, state: bytes) -> None:
        layers, self._resets_next, (python, numpy) = pickle.loads(state)
        self._has_ended, self.restore_problem = False, None
        try:
            _restore_layers(_single_layers(self.env), layers)
        except ValueError as error:
            self.restore_problem = str(error)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _log_no_state(env: Any, error: Exception) -> None:
    """Logs the error of an attribute that cannot be pickled; the caller tells the user what follows from it."""
    logger.info("the state of %s cannot be saved: %s: %s", env.spec, type(error).__name__, error)


def _capture_layers(layers: list[Any]) -> bytes:
    emulators = {id(emulator): index for index, emulator in _emulators(layers).items()}
    buffer = io.BytesIO()
    states = {index: emulator.cloneState(include_rng=True) for index, emulator in _emulators(layers).items()}
    pickler = _Pickler(buffer, {id(layer): index for index, layer in enumerate(layers)}, emulators)
    pickler.dump(([_attributes(layer) for layer in layers], states))
    return buffer.getvalue()


def _restore_layers(layers: list[Any], state: bytes) -> None:
    attributes, states = _Unpickler(io.BytesIO(state), layers).load()
    if len(attributes) != len(layers):
        raise ValueError(f"the saved environments have {len(attributes)} layers, these have {len(layers)}")
    for layer, values in zip(layers, attributes, strict=True):
        vars(layer).update(values)
    for index, emulator_state in states.items():
        vars(layers[index])["ale"].restoreState(emulator_state)


def settings_of(config: Any) -> dict[str, str]:
    """Name -> value as text, for every setting that decides which environments a vector has.

    A state fits only environments with the same settings: put into others, it would undo their settings.

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
    """Text that is the same for equal values in every process; an object's own `repr` may contain its address."""
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
    """Vector wrappers, the vector, and each environment with its wrappers, from the outside in; None if the vector is
    not one whose environments can be reached."""
    layers: list[Any] = []
    while isinstance(env, VectorWrapper):
        layers.append(env)
        env = env.env
    if not isinstance(env, SyncVectorEnv):
        return None
    return [*layers, env, *(layer for single in env.envs for layer in _single_layers(single))]


def _single_layers(env: gym.Env) -> list[Any]:
    """An environment's wrappers from the outside in, and itself."""
    layers: list[Any] = []
    while isinstance(env, gym.Wrapper):
        layers.append(env)
        env = env.env
    return [*layers, env]


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
    """Pickles environments and emulators as references, which `_Unpickler` resolves to the new ones."""

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
        if index >= len(self._layers):
            raise ValueError(f"the saved environments have more layers than these, which have {len(self._layers)}")
        return self._layers[index] if kind == "layer" else vars(self._layers[index])["ale"]
