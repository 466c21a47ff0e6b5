"""Makes the EnvRunner's environments from a config: guarded, and vectorised."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from ray.tune.registry import ENV_CREATOR, _global_registry

from rllib_efficientzero.env.dm_control import is_dmc_id
from rllib_efficientzero.env.env_state import StatefulEnv
from rllib_efficientzero.env.guard import CheckedVectorEnv, GuardedEnv, GuardPolicy
from rllib_efficientzero.env.named import named_maker
from rllib_efficientzero.env.spaces import adapt, adapt_vector

logger = logging.getLogger(__name__)


def make_vector_env(
    env: str | Callable[..., Any],
    env_config: dict[str, Any],
    *,
    num_envs: int,
    mode: gym.VectorizeMode,
    policy: GuardPolicy,
    runner: str,
    timeout_s: float | None,
    representation: str = "auto",
) -> gym.vector.VectorEnv:
    """A guarded vector of environments.

    Args:
        env: a gymnasium id, a name registered with Tune, an Atari id, or a function of `env_config`.
        env_config: RLlib's `EnvContext`; for a gymnasium id, its keyword arguments.
        num_envs: environments in the vector.
        mode: one after the other in this process, one process for each, or a vector that `env` makes by itself.
        policy: how to handle broken environments.
        runner: the EnvRunner's name in messages, such as "EnvRunner 1".
        timeout_s: of a step and of a reset, for environments in separate processes.
        representation: of actions; see `spaces.action_view`.

    Raises:
        ValueError: the spaces are not supported (`UnsupportedSpaceError`), or `env` did not make an environment.
    """
    if mode is gym.VectorizeMode.VECTOR_ENTRY_POINT:
        return adapt_vector(_make_native_vector(env, env_config, num_envs, runner), representation)
    make = env_maker(env, env_config)
    makers: list[Callable[[], gym.Env]] = [
        functools.partial(_make_guarded, make, f"environment {index} of {runner}", policy, representation)
        for index in range(num_envs)
    ]
    if mode is gym.VectorizeMode.ASYNC:
        # OpenGL, once initialised in this process, does not work in a fork of it: rendering would hang there.
        context = "forkserver" if isinstance(env, str) and is_dmc_id(env) else None
        makers = [functools.partial(_make_stateful, make) for make in makers]
        return _AsyncVectorEnv(makers, timeout_s=timeout_s, context=context)
    return SyncVectorEnv(makers)


def _make_guarded(make: Callable[[], gym.Env], name: str, policy: GuardPolicy, representation: str) -> gym.Env:
    env = GuardedEnv(make, name=name, policy=policy)
    try:
        return adapt(env, representation)
    except ValueError:
        env.close()
        raise


def _make_stateful(make: Callable[[], gym.Env]) -> gym.Env:
    return StatefulEnv(make())


def env_maker(env: str | Callable[..., Any], env_config: dict[str, Any]) -> Callable[[], gym.Env]:
    """A function that makes one environment; see `make_vector_env`."""
    creator = _creator(env)
    if creator is None:
        return functools.partial(gym.make, env, **env_config)

    def make() -> gym.Env:
        made = creator(env_config)
        if not isinstance(made, gym.Env):
            raise ValueError(f"the environment {env!r} is a {type(made).__name__}, not a gymnasium.Env.")
        return made

    return make


def _creator(env: str | Callable[..., Any]) -> Callable[[dict[str, Any]], Any] | None:
    """Returns the function that makes an environment from its env_config; None for gymnasium's own ids."""
    if not isinstance(env, str):
        return env
    if _global_registry.contains(ENV_CREATOR, env):
        return _global_registry.get(ENV_CREATOR, env)
    return named_maker(env)


def _make_native_vector(
    env: str | Callable[..., Any], env_config: dict[str, Any], num_envs: int, runner: str
) -> gym.vector.VectorEnv:
    creator = _creator(env)
    if creator is None:
        vector = gym.make_vec(env, num_envs, gym.VectorizeMode.VECTOR_ENTRY_POINT, **env_config)
    else:
        vector = creator({**env_config, "num_envs": num_envs})
    if not isinstance(vector, gym.vector.VectorEnv):
        raise ValueError(
            f"gym_env_vectorize_mode is 'vector_entry_point', but {env!r} made a {type(vector).__name__}, not a "
            "gymnasium.vector.VectorEnv; use 'sync' or 'async'."
        )
    if vector.metadata.get("autoreset_mode") is not AutoresetMode.NEXT_STEP:
        raise ValueError(
            f"the vector environment {env!r} has autoreset_mode {vector.metadata.get('autoreset_mode')}; EnvRunners "
            "take the observation after an episode's end for the next one's first, which is AutoresetMode.NEXT_STEP."
        )
    return CheckedVectorEnv(vector, name=runner)


def end_vector_env(env: gym.vector.VectorEnv, *, failed: bool) -> None:
    """Closes a vector environment, by force where it has failed."""
    unwrapped = env.unwrapped
    if failed and isinstance(unwrapped, _AsyncVectorEnv):
        unwrapped.kill()
        return
    try:
        env.close()
    except Exception as error:
        logger.warning("Environments could not be closed: %s: %s", type(error).__name__, error)


class _AsyncVectorEnv(AsyncVectorEnv):
    """Environments in processes of their own; one that does not answer in time raises instead of blocking for ever."""

    def __init__(self, makers: list[Callable[[], gym.Env]], *, timeout_s: float | None, context: str | None) -> None:
        self._timeout_s = timeout_s
        super().__init__(makers, context=context)

    def reset_wait(self, timeout: float | None = None) -> tuple[Any, dict[str, Any]]:
        return super().reset_wait(self._timeout_s if timeout is None else timeout)

    def step_wait(self, timeout: float | None = None) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        return super().step_wait(self._timeout_s if timeout is None else timeout)

    def kill(self) -> None:
        """Ends the processes without asking them; one of them may be dead, or hang."""
        self.closed = True
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
