"""Self-play by the EnvRunners: in turns with the Learners, or at the same time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, Protocol

import ray
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE

from rllib_efficientzero.env.sampling import (
    Patience,
    Sample,
    end_process,
    sample_remotely,
    take_sample,
    take_sample_or_error,
)

PULLED_VERSION = "_pulled_weights_version"
"""Attribute of an EnvRunner that says which weights it acts with."""
SECONDS_TO_STOP = 5.0
"""How long `stop` waits for an EnvRunner that is still playing, before it kills it."""


class SelfPlay(Protocol):
    """A source of samples."""

    def sample(self, num_steps: int, *, budget: int, num_updates: int) -> list[Sample]:
        """Returns samples of about `num_steps` steps in all, at most `budget` unless resets take hidden steps.

        Args:
            num_steps: for all EnvRunners together; 0 while updates are owed.
            budget: steps left in the run.
            num_updates: updates made so far.
        """

    def must_collect(self, num_updates: int) -> bool:
        """Whether `sample` is to be called even though updates are owed."""

    def take_arrived(self, num_updates: int) -> list[Sample]:
        """Returns samples that have arrived already. Does not wait, ask for new samples or handle failures."""

    def update_weights(self, learner_group: Any, num_updates: int) -> None:
        """Gives the EnvRunners the Learners' weights."""

    def discard(self) -> None:
        """Drops samples and weights from before a restore."""

    def stop(self) -> None:
        """Makes sure that no EnvRunner is still playing."""


class SynchronousSelfPlay:
    """Self-play and learning take turns: a run depends on its seed alone, not on the speed of its machines."""

    def __init__(self, group: Any, config: Any, restore: Callable[[], Any]) -> None:
        """Args:
        group: the EnvRunnerGroup.
        config: the algorithm's.
        restore: brings EnvRunners that were replaced back into service.
        """
        self._group = group
        self._config = config
        self._restore = restore

    def sample(self, num_steps: int, *, budget: int, num_updates: int) -> list[Sample]:
        """See `SelfPlay`."""
        if self._config.num_env_runners == 0:
            return [take_sample(self._group.local_env_runner, num_timesteps=num_steps)]
        # If some EnvRunners are missing, the others do not take over their share: a second failure would lose it again.
        share = max(1, num_steps // self._config.num_env_runners)
        return sample_remotely(self._group, share, config=self._config, restore=self._restore)

    def must_collect(self, num_updates: int) -> bool:
        """See `SelfPlay`."""
        return False

    def take_arrived(self, num_updates: int) -> list[Sample]:
        """See `SelfPlay`."""
        return []

    def update_weights(self, learner_group: Any, num_updates: int) -> None:
        """See `SelfPlay`."""
        if self._config.num_env_runners == 0 and learner_group.is_local:
            learner_group._learner.copy_weights_to(self._group.local_env_runner)
            return
        # Without a timeout, RLlib skips EnvRunners that have not yet confirmed the previous weights: on a busy machine
        # some would act with old ones.
        self._group.sync_weights(
            from_worker_or_learner_group=learner_group,
            timeout_seconds=self._config.env_runner_restore_timeout_s,
            inference_only=True,
        )

    def discard(self) -> None:
        """See `SelfPlay`."""

    def stop(self) -> None:
        """See `SelfPlay`."""


@dataclasses.dataclass(frozen=True)
class _Weights:
    """A reference to weights for acting, which only EnvRunners that lack this version fetch."""

    version: int
    num_updates: int
    reference: ray.ObjectRef


@dataclasses.dataclass(frozen=True)
class _Request:
    """A sample that an EnvRunner is playing."""

    reference: ray.ObjectRef
    weights: _Weights
    most_steps: int
    sent_at: float


class AsynchronousSelfPlay:
    """EnvRunners go on playing while the Learners learn; each has at most one request at a time.

    Every request carries the newest published weights. `max_sample_staleness` bounds how many updates old these may be
    when the sample arrives: samples that the next updates would make too old are waited for first. The steps requested
    never exceed the budget.
    """

    def __init__(self, group: Any, config: Any, learner_group: Any, restore: Callable[[], Any]) -> None:
        """Args:
        group: the EnvRunnerGroup.
        config: the algorithm's.
        learner_group: its weights are the first to act with.
        restore: brings EnvRunners that were replaced back into service.
        """
        self._manager = group._worker_manager
        self._config = config
        self._learner_group = learner_group
        self._restore = restore
        self._requests: dict[int, _Request] = {}  # by worker index
        self._weights: _Weights | None = None
        self._num_versions = 0

    # --- The interface of `SelfPlay` ---------------------------------------------------------------------------------

    def sample(self, num_steps: int, *, budget: int, num_updates: int) -> list[Sample]:
        """See `SelfPlay`. With `num_steps` 0, returns the overdue samples only and sends no requests."""
        if num_steps == 0:
            return self._collect(self._overdue(num_updates), num_updates, wait_for_all=True)
        if self._weights is None:
            self.update_weights(self._learner_group, num_updates)
        patience = Patience(self._config, self._restore)
        while True:
            self._send(budget)
            overdue = self._overdue(num_updates)
            samples = self._collect(overdue or list(self._requests), num_updates, bool(overdue), patience)
            if samples:
                # The EnvRunners that have answered go on playing at once.
                self._send(budget - sum(sample.num_steps for sample in samples))
                return samples
            if not self._requests:
                patience.wait()

    def must_collect(self, num_updates: int) -> bool:
        """See `SelfPlay`."""
        return bool(self._overdue(num_updates))

    def take_arrived(self, num_updates: int) -> list[Sample]:
        """See `SelfPlay`."""
        by_reference = {request.reference: index for index, request in self._requests.items()}
        if not by_reference:
            return []
        arrived, _ = ray.wait(list(by_reference), num_returns=len(by_reference), timeout=0)
        played = []
        for reference in arrived:
            with contextlib.suppress(ray.exceptions.RayError):
                if ray.get(reference).error is None:
                    played.append(by_reference[reference])
        samples, _ = self._take(played, num_updates)
        return samples

    def update_weights(self, learner_group: Any, num_updates: int) -> None:
        """See `SelfPlay`."""
        state = learner_group.get_state(components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True)
        self._num_versions += 1
        reference = ray.put(state[COMPONENT_LEARNER][COMPONENT_RL_MODULE])
        self._weights = _Weights(self._num_versions, num_updates, reference)

    def discard(self) -> None:
        """See `SelfPlay`."""
        self._requests.clear()
        self._weights = None

    def stop(self) -> None:
        """See `SelfPlay`. Kills EnvRunners that do not answer: RLlib would wait for ever for them to stop."""
        by_reference = {request.reference: index for index, request in self._requests.items()}
        self._requests.clear()
        if not by_reference:
            return
        _, at_work = ray.wait(list(by_reference), num_returns=len(by_reference), timeout=SECONDS_TO_STOP)
        for reference in at_work:
            worker_index = by_reference[reference]
            ray.kill(self._manager.actors()[worker_index])
            self._manager.set_actor_state(worker_index, healthy=False)

    # --- Requests ----------------------------------------------------------------------------------------------------

    def _send(self, budget: int) -> None:
        """Sends a request to every idle EnvRunner in service, as far as the budget allows."""
        num_envs = self._config.num_envs_per_env_runner
        assert self._weights is not None  # `sample` has published some
        for worker_index in self._manager.healthy_actor_ids():
            if worker_index in self._requests:
                continue
            left = budget - sum(request.most_steps for request in self._requests.values())
            # All environments of a runner step together: it may return up to `num_envs` - 1 steps too many.
            num_steps = min(self._config.rollout_fragment_length * num_envs, left - (num_envs - 1))
            if num_steps < 1:
                return
            play = functools.partial(_play_with, weights=self._weights, num_timesteps=num_steps)
            reference = self._manager.actors()[worker_index].apply.remote(play)
            request = _Request(reference, self._weights, num_steps + num_envs - 1, time.monotonic())
            self._requests[worker_index] = request

    def _overdue(self, num_updates: int) -> list[int]:
        """Worker indices of the samples that would be too old after another iteration's updates."""
        latest = num_updates + self._config.updates_per_sample() - self._config.sample_staleness_bound()
        return [index for index, request in self._requests.items() if request.weights.num_updates < latest]

    def _collect(
        self, worker_indices: list[int], num_updates: int, wait_for_all: bool, patience: Patience | None = None
    ) -> list[Sample]:
        """Waits for the first sample of some EnvRunners, or for all, and returns those that have arrived.

        The samples of EnvRunners that were lost are dropped.
        """
        if not worker_indices:
            return []
        samples, failures = self._take(self._wait_for(worker_indices, wait_for_all), num_updates)
        failures |= self._end_hung()
        (patience or Patience(self._config, self._restore)).judge(failures)
        return samples

    def _wait_for(self, worker_indices: list[int], all_of_them: bool) -> list[int]:
        """Waits until one of some EnvRunners has answered, or all have, or one hangs; returns those that answered."""
        by_reference = {self._requests[index].reference: index for index in worker_indices}
        first_sent = min(self._requests[index].sent_at for index in worker_indices)
        limit = self._config.sample_timeout_s
        arrived, _ = ray.wait(
            list(by_reference),
            num_returns=len(by_reference) if all_of_them else 1,
            timeout=None if limit is None else max(0.0, first_sent + limit - time.monotonic()),
        )
        if not all_of_them:
            # `ray.wait` reports only as many as it was asked for, although more may have arrived.
            arrived, _ = ray.wait(list(by_reference), num_returns=len(by_reference), timeout=0)
        return [by_reference[reference] for reference in arrived]

    def _take(self, worker_indices: list[int], num_updates: int) -> tuple[list[Sample], dict[int, Exception]]:
        """Takes the answers of some EnvRunners in a fixed order: returns the samples, and the errors of the others."""
        samples: list[Sample] = []
        failures: dict[int, Exception] = {}
        for worker_index in sorted(worker_indices):
            request = self._requests.pop(worker_index)
            answer = self._read(worker_index, request.reference)
            if isinstance(answer, Exception):
                failures[worker_index] = answer
            else:
                staleness = num_updates - request.weights.num_updates
                samples.append(dataclasses.replace(answer, staleness=staleness))
        return samples, failures

    def _end_hung(self) -> dict[int, Exception]:
        """Ends all EnvRunners that have not answered within `sample_timeout_s`, and returns an error for each."""
        limit = self._config.sample_timeout_s
        if limit is None:
            return {}
        now = time.monotonic()
        hung = [index for index, request in self._requests.items() if now - request.sent_at > limit]
        for worker_index in hung:
            del self._requests[worker_index]
            end_process(self._manager, worker_index)
        return {index: TimeoutError(f"it did not answer within sample_timeout_s={limit:g}") for index in hung}

    def _read(self, worker_index: int, reference: ray.ObjectRef) -> Sample | Exception:
        """Returns the answer of an EnvRunner, or its error; on an error the EnvRunner is out of service."""
        try:
            answer: Sample = ray.get(reference)
        except ray.exceptions.RayError as error:
            self._manager.set_actor_state(worker_index, healthy=False)
            return error
        if answer.error is not None:
            end_process(self._manager, worker_index)
            return answer.error
        return answer


def _play_with(env_runner: Any, *, weights: _Weights, num_timesteps: int) -> Sample:
    """Plays, after loading the weights if the EnvRunner has another version; called in its process."""
    if getattr(env_runner, PULLED_VERSION, None) != weights.version:
        env_runner.set_state({COMPONENT_RL_MODULE: ray.get(weights.reference)})
        setattr(env_runner, PULLED_VERSION, weights.version)
    return take_sample_or_error(env_runner, num_timesteps=num_timesteps)
