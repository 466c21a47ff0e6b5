"""The parameters that distribute a run over processes and machines; by default it runs in one process."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided

BATCHES_AHEAD = 12
"""The default number of batches made ahead beside a Learner on a GPU: as many as two threads reanalyze, from windows
drawn meanwhile, during self-play."""

Config = TypeVar("Config", bound="ScaleOutConfig")


class ScaleOutConfig(AlgorithmConfig):
    """A base of `EfficientZeroConfig`: settings of reanalyze actors, asynchronous self-play, Learners and resources."""

    replay_ratio: float
    self_play_update_freq: int

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
        self.num_reanalyze_actors = 0
        self.num_gpus_per_reanalyze_actor = 0.0
        self.num_cpus_per_reanalyze_actor = 1.0
        self.reanalyze_prefetch: int | None = None
        self.reanalyze_timeout_s = 60.0
        self.sample_asynchronously = False
        self.max_sample_staleness: int | None = None
        self.sync_batch_norm = False
        self.wait_for_resources = False

    def reanalyze(
        self: Config,
        *,
        num_actors: int | None = NotProvided,
        num_gpus_per_actor: float | None = NotProvided,
        num_cpus_per_actor: float | None = NotProvided,
        prefetch: int | None = NotProvided,
        timeout_s: float | None = NotProvided,
    ) -> Config:
        """Sets where reanalysis runs, which searches policy and value targets anew.

        Args:
            num_actors: processes that reanalyze while the Learners learn; 0: the Learners' own processes do it (key
                `num_reanalyze_actors`).
            num_gpus_per_actor: GPUs, or the fraction of one, per actor (key `num_gpus_per_reanalyze_actor`).
            num_cpus_per_actor: CPUs per actor; torch uses as many threads, and the tree `num_search_threads` (key
                `num_cpus_per_reanalyze_actor`).
            prefetch: batches made ahead of the update that learns from them (key `reanalyze_prefetch`). With 0, results
                equal those without actors; with n, a batch's windows, priorities and target network are up to n updates
                older. Without actors, threads beside a Learner in the same process make them: these batches lack the
                priorities of up to n updates, and the first n of an iteration lack the steps of that iteration. None:
                as many as there are actors, so that none is idle; without actors 12 if that Learner has a GPU, else 0.
            timeout_s: seconds after which an actor that does not answer is started again, and the Learners make its
                batch (key `reanalyze_timeout_s`).
        """
        return self._set(
            num_reanalyze_actors=num_actors,
            num_gpus_per_reanalyze_actor=num_gpus_per_actor,
            num_cpus_per_reanalyze_actor=num_cpus_per_actor,
            reanalyze_prefetch=prefetch,
            reanalyze_timeout_s=timeout_s,
        )

    def env_runners(
        self: Config,
        *,
        sample_asynchronously: bool | None = NotProvided,
        max_sample_staleness: int | None = NotProvided,
        **kwargs: Any,
    ) -> Config:
        """Sets how self-play runs; keywords not listed here are RLlib's.

        Args:
            sample_asynchronously: EnvRunners keep playing while the Learners learn. Needs `num_env_runners` > 0. The
                replay ratio and the budget stay exact, but the order of steps depends on the machines' speed.
            max_sample_staleness: for asynchronous sampling, the most updates by which the weights that played a step
                may be older than the Learners' when the step is stored. None: `self_play_update_freq` plus twice the
                updates that a sample of all EnvRunners allows.
        """
        super().env_runners(**kwargs)
        return self._set(sample_asynchronously=sample_asynchronously, max_sample_staleness=max_sample_staleness)

    def learners(self: Config, *, sync_batch_norm: bool | None = NotProvided, **kwargs: Any) -> Config:
        """Sets the number of Learners and their resources; keywords not listed here are RLlib's.

        Args:
            sync_batch_norm: batch normalisation over the batches of all Learners together, as if there were one; torch
                supports it on GPUs only. Without it, each Learner normalises over its own share of the batch.
        """
        super().learners(**kwargs)
        return self._set(sync_batch_norm=sync_batch_norm)

    def resources(self: Config, *, wait_for_resources: bool | None = NotProvided, **kwargs: Any) -> Config:
        """Sets the resources that the run requests from the cluster; keywords not listed here are RLlib's.

        Args:
            wait_for_resources: wait if the cluster has too few resources, as it will add nodes; else raise at once.
        """
        super().resources(**kwargs)
        return self._set(wait_for_resources=wait_for_resources)

    def validate(self) -> None:
        """See RLlib's; also keeps RLlib from synchronising EnvRunners' states in asynchronous self-play."""
        super().validate()
        # In every iteration, RLlib would wait for all EnvRunners to fetch connector states, which ours do not have.
        self._dont_auto_sync_env_runner_states = self.sample_asynchronously

    # --- What the parts are built from -----------------------------------------------------------------------------

    def num_envs(self) -> int:
        """The number of environments of all EnvRunners together."""
        return self.num_envs_per_env_runner * max(1, self.num_env_runners)

    def updates_per_sample(self) -> int:
        """The most updates that a sample of all EnvRunners can require; it may have one extra step per environment."""
        return max(1, math.ceil(self.replay_ratio * (self.rollout_fragment_length + 1) * self.num_envs()))

    def sample_staleness_bound(self) -> int:
        """`max_sample_staleness`, with its default filled in."""
        given = self.max_sample_staleness
        return self.self_play_update_freq + 2 * self.updates_per_sample() if given is None else given

    def prefetched_batches(self) -> int:
        """`reanalyze_prefetch`, with its default filled in."""
        if self.reanalyze_prefetch is not None:
            return self.reanalyze_prefetch
        return self.num_reanalyze_actors or (BATCHES_AHEAD if self.has_gpu_in_this_process() else 0)

    def has_gpu_in_this_process(self) -> bool:
        """Whether the Learner runs in the algorithm's process and computes on a GPU."""
        return self.num_learners == 0 and self.num_gpus_per_learner > 0 and torch.cuda.is_available()

    def _set(self: Config, **values: Any) -> Config:
        for key, value in values.items():
            if value is not NotProvided:
                setattr(self, key, value)
        return self
