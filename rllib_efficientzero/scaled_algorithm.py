"""Which parts of an algorithm run in which process (replay, reanalysis, self-play), and the resources they need."""

from __future__ import annotations

import functools
from typing import Any

import ray
from ray.rllib.utils.framework import get_device
from ray.tune.execution.placement_groups import PlacementGroupFactory

from rllib_efficientzero.actors import resources
from rllib_efficientzero.actors.ahead import BatchesAhead
from rllib_efficientzero.actors.batches import Batches, InlineBatches
from rllib_efficientzero.actors.reanalyze import ReanalyzedBatches, start_actors
from rllib_efficientzero.actors.replay_actor import RemoteReplay
from rllib_efficientzero.actors.self_play import AsynchronousSelfPlay, SelfPlay, SynchronousSelfPlay
from rllib_efficientzero.checkpointed_algorithm import CheckpointedAlgorithm
from rllib_efficientzero.memory import reuse_freed_memory
from rllib_efficientzero.replay import PrioritizedReplay
from rllib_efficientzero.replay.frame_sources import FramesOnDevice, FrameSource, decode_on_host


class ScaledAlgorithm(CheckpointedAlgorithm):
    """The base class that makes `EfficientZero.training_step` the same on a laptop as on a cluster."""

    local_replay_buffer: PrioritizedReplay | RemoteReplay
    self_play: SelfPlay
    """Where episodes come from."""
    batches: Batches
    """Where the next update's batch comes from."""

    def setup(self, config: Any) -> None:
        """As RLlib's. Raises InsufficientResourcesError if the cluster can never run what the config asks for."""
        if ray.util.get_current_placement_group() is None and not config.wait_for_resources:
            # Within Tune, the trial's resources are reserved. Without Tune, this process runs without a reservation, so
            # its own role is not checked.
            resources.check_cluster(resources.roles(config)[1:])
        actors = start_actors(config) if config.num_reanalyze_actors else None
        try:
            super().setup(config)
            self._set_up_sources(config, actors)
        except BaseException:
            # Stop them explicitly: a notebook that keeps the error also keeps references to what was built.
            if actors is not None:
                actors.clear()
            self._stop_replay()
            raise

    def _set_up_sources(self, config: Any, actors: Any) -> None:
        """Sets up the sources of episodes and batches.

        Args:
            config: the algorithm's.
            actors: the pool from `start_actors`; None without reanalyze actors.
        """
        replay = self.local_replay_buffer
        if actors is not None:
            self.batches = ReanalyzedBatches(config, replay, self.learner_group, actors)
        elif config.prefetched_batches():
            self.batches = BatchesAhead(config, replay, self.learner_group._learner)
        else:
            self.batches = InlineBatches(replay, config.num_learners)
        group = self.env_runner_group
        restore = functools.partial(self.restore_env_runners, group)
        if config.sample_asynchronously:
            self.self_play = AsynchronousSelfPlay(group, config, self.learner_group, restore)
        else:
            self.self_play = SynchronousSelfPlay(group, config, restore)

    def cleanup(self) -> None:
        """As RLlib's; also stops the processes that RLlib does not know about."""
        if hasattr(self, "self_play"):
            self.self_play.stop()
        super().cleanup()
        if hasattr(self, "batches"):
            self.batches.stop()
        self._stop_replay()

    def _stop_replay(self) -> None:
        replay = getattr(self, "local_replay_buffer", None)  # there is none yet if `setup` fails
        if isinstance(replay, RemoteReplay):
            replay.stop()

    def set_state(self, state: dict[str, Any]) -> None:
        """As RLlib's; also drops samples and batches that were made before the state was set."""
        super().set_state(state)
        self.self_play.discard()
        self.batches.discard()

    @classmethod
    def default_resource_request(cls, config: Any) -> PlacementGroupFactory:
        """As RLlib's, with the processes that RLlib does not know about.

        Raises:
            InsufficientResourcesError: Ray is running, and the cluster can never have the resources asked for.
        """
        resolved = cls.get_default_config().update_from_dict(config)
        if ray.is_initialized() and not resolved.wait_for_resources:
            resources.check_cluster(resources.roles(resolved))
        return resources.append_own_bundles(super().default_resource_request(config), resolved)

    def _create_local_replay_buffer_if_necessary(self, config: Any) -> PrioritizedReplay | RemoteReplay:
        # RLlib's version looks for the word "EpisodeReplayBuffer" in a class path; this algorithm has one replay only.
        settings = config.replay_buffer_config
        arguments = {
            "capacity": settings["capacity"],
            "frame_stack": config.frame_stack,
            "unroll_steps": config.unroll_steps,
            "td_steps": config.td_steps,
            "priority_exponent": settings["alpha"],
            "seed": config.seed,
        }
        if settings["placement"] == "driver":
            reuse_freed_memory()  # a batch of windows is large
            return PrioritizedReplay(**arguments, frame_source=_frame_source(config))
        return RemoteReplay(arguments, resources.scheduling(config, index=0, beside_driver=True))


def _frame_source(config: Any) -> FrameSource:
    """The frame source that puts samples where this process's Learner reads them: on its GPU, or on the host."""
    if not config.has_gpu_in_this_process():
        return decode_on_host
    settings = config.replay_buffer_config
    steps, gigabytes = min(settings["capacity"], config.total_env_steps), settings.get("gpu_cache_gb")
    return FramesOnDevice(
        get_device(config, config.num_gpus_per_learner),
        max_frames=steps + steps // 8,  # more than steps: first frames, and evicted steps of episodes still stored
        max_bytes=None if gigabytes is None else int(1e9 * gigabytes),
    )
