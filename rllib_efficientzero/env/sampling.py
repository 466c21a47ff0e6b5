"""Sampling with all EnvRunners of a group, whatever happens to them.

Ray restarts the process of an EnvRunner that died, and `Algorithm.restore_env_runners` brings its state up to date.
This module handles two cases that RLlib does not. If an EnvRunner hangs, RLlib drops its answer and asks it again next
time. If one raises an error, RLlib loses the message, and lets the process sleep before it ends.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray

from rllib_efficientzero.env.guard import BadEnvStepError

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_ATTEMPTS = 0.5
MAX_FAILED_ROUNDS = 5
"""How many times in a row all EnvRunners may fail before the run ends."""


class NoEnvRunnersError(RuntimeError):
    """No EnvRunner could be built, or none answered and none came back."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one EnvRunner played, or why it could not."""

    worker_index: int
    episodes: list[Any] = dataclasses.field(default_factory=list)
    metrics: Any = None
    hidden_steps: int = 0
    staleness: int | None = None
    """how many updates older than the Learners' weights its weights were when it arrived; None if not recorded"""
    error: Exception | None = None

    @property
    def num_steps(self) -> int:
        """Interactions that count against the budget."""
        return sum(map(len, self.episodes)) + self.hidden_steps


def take_sample(env_runner: Any, *, num_timesteps: int) -> Sample:
    """Plays `num_timesteps` steps; called in the EnvRunner's process."""
    episodes = env_runner.sample(num_timesteps=num_timesteps)
    return Sample(env_runner.worker_index, episodes, env_runner.get_metrics(), env_runner.pop_hidden_steps())


def take_sample_or_error(env_runner: Any, *, num_timesteps: int) -> Sample:
    """As `take_sample`, but an error comes back as a value: raised, it would end the process, and be lost with it."""
    try:
        return take_sample(env_runner, num_timesteps=num_timesteps)
    except Exception as error:
        return Sample(env_runner.worker_index, error=as_answer(error))


def as_answer(error: Exception) -> Exception:
    """An error of an EnvRunner in a form that can be sent to another process."""
    # Only errors of this package are sure to be unpickled in the other process.
    known = isinstance(error, BadEnvStepError)
    sent = error if known else RuntimeError(f"{type(error).__name__}: {error}")
    sent.__cause__ = sent.__context__ = sent.__traceback__ = None
    return sent


def sample_remotely(group: Any, num_timesteps: int, *, config: Any, restore: Callable[[], Any]) -> list[Sample]:
    """Plays with all remote EnvRunners and returns the samples of those that answer, at least one.

    An EnvRunner that does not answer within `sample_timeout_s`, or whose environment failed, is replaced, within
    `max_num_env_runner_restarts`. If none answers, this waits for replacements up to `env_runner_restore_timeout_s`,
    and asks again up to `MAX_FAILED_ROUNDS` times.

    Args:
        group: the EnvRunnerGroup.
        num_timesteps: steps asked of each.
        config: the algorithm's.
        restore: brings replaced EnvRunners back into service (`Algorithm.restore_env_runners`).

    Raises:
        BadEnvStepError: an environment returned values that cannot be learned from, and the config says to raise.
        NoEnvRunnersError: none answered for too long.
    """
    patience = Patience(config, restore)
    while True:
        play = functools.partial(take_sample_or_error, num_timesteps=num_timesteps)
        samples, failures = ask(
            group._worker_manager,
            dict.fromkeys(group._worker_manager.healthy_actor_ids(), play),
            timeout_s=config.sample_timeout_s,
            timeout_name="sample_timeout_s",
        )
        patience.judge(failures)
        if samples:
            # In a fixed order: who answers first must not decide what is stored first.
            return sorted(samples, key=lambda sample: sample.worker_index)
        patience.wait()


def judge(failures: Mapping[int, Exception], config: Any, what: str = "EnvRunner") -> None:
    """Logs failures, given by worker index; raises as `sample_remotely` does if one of them must end the run."""
    for worker_index, failure in failures.items():
        if isinstance(failure, BadEnvStepError):
            raise failure
        reason = f"{what} {worker_index} failed: {failure}"
        if not (config.restart_failed_env_runners or config.ignore_env_runner_failures):
            raise NoEnvRunnersError(reason)
        logger.warning(reason)


class Patience:
    """Decides whether failures of EnvRunners end the run, and how long it waits while none is in service."""

    def __init__(self, config: Any, restore: Callable[[], Any]) -> None:
        self._config = config
        self._restore = restore
        self._deadline: float | None = None
        self._failed_rounds = 0
        self._has_failed = False  # whether any EnvRunner has failed in this round
        self._reason = "all of them were out of service"

    def judge(self, failures: dict[int, Exception]) -> None:
        """See the function `judge`."""
        self._has_failed |= bool(failures)
        for worker_index, failure in failures.items():
            self._reason = f"EnvRunner {worker_index} failed: {failure}"
        judge(failures, self._config)

    def wait(self) -> None:
        """Waits a moment and restores EnvRunners; called repeatedly while none is in service. Raises after too long."""
        config = self._config
        now = time.monotonic()
        self._deadline = self._deadline or now + config.env_runner_restore_timeout_s
        # All failures between two calls are one round, however far apart: no EnvRunner was asked twice in it.
        self._failed_rounds += self._has_failed
        self._has_failed = False
        if self._failed_rounds >= MAX_FAILED_ROUNDS:
            raise NoEnvRunnersError(f"all EnvRunners failed {self._failed_rounds} times in a row; {self._reason}")
        if now > self._deadline:
            raise NoEnvRunnersError(
                f"none of {config.num_env_runners} EnvRunners answered for {config.env_runner_restore_timeout_s:g} s "
                f"(env_runner_restore_timeout_s), with up to {config.max_num_env_runner_restarts} restarts of each "
                f"(max_num_env_runner_restarts); {self._reason}"
            )
        time.sleep(SECONDS_BETWEEN_ATTEMPTS)
        self._restore()


def ask(
    manager: Any, plays: Mapping[int, Callable[[Any], Any]], *, timeout_s: float | None, timeout_name: str
) -> tuple[list[Any], dict[int, Exception]]:
    """Calls functions with EnvRunners; returns the answers, and the errors by worker index.

    EnvRunners that answer with an error, or not in time, are ended.

    Args:
        manager: RLlib's, of their group.
        plays: worker index -> function to call with that EnvRunner, whose result has an `error`.
        timeout_s: seconds to wait for answers; None: for ever.
        timeout_name: name of the setting for `timeout_s`, for messages.
    """
    if not plays:
        return [], {}
    results = manager.foreach_actor(list(plays.values()), remote_actor_ids=list(plays), timeout_seconds=timeout_s)
    answers: list[Any] = []
    failures: dict[int, Exception] = {}
    for result in results:
        answer = result.get()
        if not result.ok:
            failures[result.actor_id] = answer
        elif answer.error is None:
            answers.append(answer)
        else:
            failures[result.actor_id] = answer.error
            end_process(manager, result.actor_id)
    for actor_id in set(plays) - {result.actor_id for result in results}:
        failures[actor_id] = TimeoutError(f"it did not answer within {timeout_name}={timeout_s:g}")
        end_process(manager, actor_id)
    return answers, failures


def end_process(manager: Any, actor_id: int) -> None:
    """Ends a process that hangs or whose environments are broken; Ray starts another in its place."""
    ray.kill(manager.actors()[actor_id], no_restart=False)
    manager.set_actor_state(actor_id, healthy=False)


def why_none_was_built(config: Any) -> str:
    """Why EnvRunners of this config cannot be built, found by building one in a process of its own."""
    build = ray.remote(num_cpus=0, max_retries=0)(_build_one)
    try:
        return ray.get(build.remote(config), timeout=config.env_runner_restore_timeout_s)
    except ray.exceptions.RayError as error:
        return f"the process that tries it ends: {' '.join(str(error).split())[:300]}"


def _build_one(config: Any) -> str:
    try:
        runner = config.env_runner_cls(config=config, worker_index=1, num_workers=1)
    except Exception as error:
        return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    runner.stop()
    return "the logs of their processes say why"
