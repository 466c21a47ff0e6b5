"""Reanalysis in processes of its own, so that searches overlap with gradient steps."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.actor_manager import FaultAwareApply, FaultTolerantActorManager
from ray.rllib.utils.framework import get_device
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_efficientzero import metrics as names
from rllib_efficientzero.actors import resources
from rllib_efficientzero.actors.batches import Batch, draw_shards
from rllib_efficientzero.memory import reuse_freed_memory
from rllib_efficientzero.replay import Windows

logger = logging.getLogger(__name__)

PING = "ping"


@dataclasses.dataclass(frozen=True)
class TargetWeights:
    """A reference to a copy of the target network, which only actors that lack this version fetch."""

    version: int
    reference: ray.ObjectRef
    """to (module spec, state of the target network)"""


class ReanalyzeActor(FaultAwareApply):
    """Makes train batches from windows with the connector that a Learner would run (`connectors/reanalyze.py`).

    Each request brings everything that the actor needs, so that a restarted actor needs no state from before.
    """

    def __init__(self, config: Any) -> None:
        reuse_freed_memory()
        self.config = config
        self._device = get_device(config, config.num_gpus_per_reanalyze_actor)
        self._connector = config.build_learner_connector(None, None, self._device)
        self._metrics = MetricsLogger()
        self._module: Any = None
        self._version: int | None = None

    def make_batch(
        self, windows: Windows, weights: TargetWeights, num_updates: int
    ) -> tuple[dict[str, Any], MultiAgentBatch]:
        """Returns the metrics, and the train batch of B windows on the host.

        Args:
            windows: B windows.
            weights: of the target network, to search with.
            num_updates: updates made when the windows were drawn.
        """
        if weights.version != self._version:
            self._load(weights)
        self._module.num_updates.fill_(num_updates)
        modules = {DEFAULT_MODULE_ID: self._module}
        made = self._connector(rl_module=modules, batch={}, episodes=[windows], shared_data={}, metrics=self._metrics)
        batches = {module_id: SampleBatch(_on_host(batch)) for module_id, batch in made.items()}
        return self._metrics.reduce(), MultiAgentBatch(batches, env_steps=len(windows))

    def _load(self, weights: TargetWeights) -> None:
        spec, state = ray.get(weights.reference)
        if self._module is None:
            # Built like the Learner's: in another memory layout the same weights give results with other last bits.
            self._module = spec.build().to(self._device, memory_format=torch.channels_last)
            self._module.make_target_networks()
        self._module.target_network.load_state_dict({key: torch.tensor(value) for key, value in state.items()})
        self._version = weights.version


@dataclasses.dataclass
class _Request:
    """A batch that actors are making."""

    windows: list[ray.ObjectRef]
    """shards of the sample, kept in case their actors fail"""
    answers: list[tuple[int, ray.ObjectRef, ray.ObjectRef]]
    """per shard: the id of its actor, its metrics, its train batch"""
    num_updates: int
    """updates made when the windows were drawn"""


class ReanalyzedBatches:
    """Train batches made by a pool of `ReanalyzeActor`s, up to `reanalyze_prefetch` of them ahead of their update.

    Batches come in the order in which their windows were drawn, so that runs without failures are repeatable, and all
    shards of a batch are made with the same weights. If an actor dies or hangs, the Learners get the windows instead,
    and their connector does the same work; meanwhile Ray restarts the actor.
    """

    def __init__(self, config: Any, replay: Any, learner_group: Any, actors: FaultTolerantActorManager) -> None:
        """Args:
        config: the algorithm's.
        replay: a `PrioritizedReplay` or `RemoteReplay`.
        learner_group: its Learners hold the target network.
        actors: the pool from `start_actors`.
        """
        self._config = config
        self._replay = replay
        self._learner_group = learner_group
        self._manager = actors
        self._queue: collections.deque[_Request] = collections.deque()
        self._weights: TargetWeights | None = None
        self._num_copies: int | None = None  # copies of the target network made before the weights were published
        self._num_inline = 0  # batches reanalyzed by the Learners since the last `get_metrics`
        self._lag = 0
        # Wait for all actors to start: one that is still starting would look like one that hangs.
        actors.foreach_actor(PING, timeout_seconds=config.env_runner_restore_timeout_s)

    # --- The interface of `Batches` ----------------------------------------------------------------------------------

    def foreground(self) -> AbstractContextManager[None]:
        """See `Batches`. The actors are separate processes, so there is nothing to put first in this one."""
        return contextlib.nullcontext()

    def prefetch(self, batch_size: int, *, beta: Callable[[int], float], num_updates: int, num_following: int) -> None:
        """See `Batches`. Does nothing: `next` keeps the queue full across iterations."""

    def next(self, batch_size: int, *, beta: Callable[[int], float], num_updates: int, num_following: int) -> Batch:
        """See `Batches`."""
        exponent = beta(num_updates)
        self._publish_weights(num_updates)
        self._welcome_restarted()
        while len(self._queue) <= self._config.prefetched_batches() and self._manager.healthy_actor_ids():
            self._queue.append(self._request(batch_size, exponent, num_updates))
        if not self._queue:
            return self._inline(self._draw(batch_size, exponent))
        request = self._queue.popleft()
        self._lag = num_updates - request.num_updates
        results = self._await(request)
        if results is None:
            return self._inline(request.windows)
        references = [reference for _, _, reference in request.answers]
        if self._learner_group.is_local:
            return Batch(TrainingData(batch=ray.get(references[0])), results)
        return Batch(TrainingData(batch_refs=references), results)

    def has_unused(self) -> bool:
        """See `Batches`. False: batches that are still being made serve the next iteration as well."""
        return False

    def wait_for_draws(self) -> None:
        """See `Batches`. Nothing to wait for: windows are drawn within `next`."""

    def discard(self) -> None:
        """See `Batches`."""
        self._queue.clear()
        self._num_copies = None

    def get_metrics(self) -> dict[str, float]:
        """See `Batches`."""
        num_inline, self._num_inline = self._num_inline, 0
        return {
            names.RESTARTS: self._manager.total_num_restarts(),
            names.NUM_ACTORS_IN_SERVICE: self._manager.num_healthy_actors(),
            names.NUM_INLINE_BATCHES_LIFETIME: num_inline,
            names.BATCH_LAG: self._lag,
        }

    def stop(self) -> None:
        """See `Batches`."""
        self._queue.clear()
        self._manager.clear()

    # --- Requests ----------------------------------------------------------------------------------------------------

    def _draw(self, batch_size: int, beta: float) -> list[ray.ObjectRef]:
        return draw_shards(self._replay, batch_size, beta, max(1, self._config.num_learners))

    def _request(self, batch_size: int, beta: float, num_updates: int) -> _Request:
        windows = self._draw(batch_size, beta)
        request = _Request(windows, [], num_updates)
        load = collections.Counter(actor_id for queued in self._queue for actor_id, _, _ in queued.answers)
        for shard in windows:
            actor_id = min(self._manager.healthy_actor_ids(), key=lambda id_: (load[id_], id_))
            load[actor_id] += 1
            actor = self._manager.actors()[actor_id]
            metrics, batch = actor.make_batch.options(num_returns=2).remote(shard, self._weights, num_updates)
            request.answers.append((actor_id, metrics, batch))
        return request

    def _await(self, request: _Request) -> list[dict[str, Any]] | None:
        """Waits for a batch and returns its metrics; None if the batch was lost."""
        timeout = self._config.reanalyze_timeout_s
        waited_for = [reference for _, *references in request.answers for reference in references]
        # Fetched to this node, so that the batch survives a failure of the node that made it.
        _, missing = ray.wait(waited_for, num_returns=len(waited_for), timeout=timeout, fetch_local=True)
        results = []
        for actor_id, metrics, batch in request.answers:
            if metrics in missing or batch in missing:
                if self._give_up(actor_id, f"it did not answer within reanalyze_timeout_s={timeout:g}"):
                    ray.kill(self._manager.actors()[actor_id], no_restart=False)
                continue
            try:
                results.append(ray.get([metrics, batch])[0])
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:
                self._give_up(actor_id, type(error).__name__)
        return results if len(results) == len(request.answers) else None

    def _inline(self, windows: list[ray.ObjectRef]) -> Batch:
        """A batch of plain windows, which the Learners reanalyze themselves."""
        self._num_inline += 1
        if self._learner_group.is_local:
            return Batch(TrainingData(episodes=[ray.get(windows[0])]))
        return Batch(TrainingData(episodes_refs=windows))

    # --- Weights -----------------------------------------------------------------------------------------------------

    def _publish_weights(self, num_updates: int) -> None:
        """Publishes the target network if it was updated since the last time; earlier requests keep their weights."""
        num_copies = num_updates // self._config.target_network_update_freq
        if num_copies == self._num_copies:
            return
        answers = self._learner_group.foreach_learner(
            _spec_and_target_state, remote_actor_ids=None if self._learner_group.is_local else [0]
        )
        version = 0 if self._weights is None else self._weights.version + 1
        self._weights = TargetWeights(version, ray.put(next(iter(answers)).get()))
        self._num_copies = num_copies

    # --- Failures ----------------------------------------------------------------------------------------------------

    def _give_up(self, actor_id: int, reason: str) -> bool:
        """Takes an actor out of service until its restarted process answers. Returns whether it was in service."""
        was_in_service = self._manager.is_actor_healthy(actor_id)
        if was_in_service:
            logger.warning("reanalyze actor %d is started again: %s", actor_id, reason)
            self._manager.set_actor_state(actor_id, healthy=False)
        return was_in_service

    def _welcome_restarted(self) -> None:
        """Puts actors that answer again back into service, without waiting for the others."""
        self._manager.fetch_ready_async_reqs(tags=PING, timeout_seconds=0.0, mark_healthy=True)
        missing = set(self._manager.actor_ids()) - set(self._manager.healthy_actor_ids())
        if missing:
            # The manager sends no ping to actors that have not answered the last one.
            self._manager.foreach_actor_async(PING, tag=PING, remote_actor_ids=sorted(missing), healthy_only=False)


def start_actors(config: Any) -> FaultTolerantActorManager:
    """Starts the pool that `config` asks for. Call it before the Learners are built."""
    actor_class = ray.remote(
        num_cpus=config.num_cpus_per_reanalyze_actor,
        num_gpus=config.num_gpus_per_reanalyze_actor,
        max_restarts=-1,
        max_task_retries=0,
    )(ReanalyzeActor)
    roles = [role for role, _ in resources.own_bundles(config)]
    actors = [
        actor_class.options(scheduling_strategy=resources.scheduling(config, index)).remote(config)
        for index, role in enumerate(roles)
        if role == resources.REANALYZE_ACTOR
    ]
    manager = FaultTolerantActorManager(actors, max_remote_requests_in_flight_per_actor=1)
    if ray.util.get_current_placement_group() is not None:
        # Ray puts Learners into any bundle with room: the actors must occupy theirs before the Learners start.
        manager.foreach_actor(PING)
    return manager


def _spec_and_target_state(learner: Any) -> tuple[Any, dict[str, Any]]:
    """The module spec and target network state with which an actor searches as this Learner would."""
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    return learner._module_spec.rl_module_specs[DEFAULT_MODULE_ID], _on_host(module.target_network.state_dict())


def _on_host(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Arrays of the same types: RLlib's `convert_to_numpy` would cut seeds and position ids to 32 bits."""
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
