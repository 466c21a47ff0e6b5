"""The parameters that spread a run over processes and machines; without them all is one process."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided

BATCHES_AHEAD = 12
"""Made ahead beside a Learner on a GPU: what two threads reanalyze, and windows are drawn for, during self-play."""

Config = TypeVar("Config", bound="ScaleOutConfig")


class ScaleOutConfig(AlgorithmConfig):
    """What `EfficientZeroConfig` inherits: reanalyze actors, asynchronous self-play, Learners, resources."""

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
        """Sets where policy and value targets are searched afresh.

        Args:
            num_actors: processes that do it while the Learners learn; 0: the Learners do it themselves, before each
                update (key `num_reanalyze_actors`).
            num_gpus_per_actor: GPUs, or the share of one, of each (key `num_gpus_per_reanalyze_actor`).
            num_cpus_per_actor: CPUs of each; torch uses as many threads, the tree `num_search_threads` (key
                `num_cpus_per_reanalyze_actor`).
            prefetch: batches made ahead of the update that learns from them (key `reanalyze_prefetch`). With 0, results
                equal those without actors; with n, a batch's windows, priorities and target network are up to n updates
                older. Without actors they are made in threads beside a Learner in the same process, and miss the
                priorities of up to n updates and, the first n of an iteration, its steps. None: as many as actors, so
                that none is idle; without actors 12 where that Learner has a GPU, else 0.
            timeout_s: seconds after which an actor that does not answer is started again, and the batch made by the
                Learners (key `reanalyze_timeout_s`).
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
            sample_asynchronously: EnvRunners play on while the Learners learn. Needs `num_env_runners` > 0. The replay
                ratio and the budget stay exact, but which steps come first depends on the machines' speed.
            max_sample_staleness: with it, the most updates by which the weights that played a step may be older than
                the Learners' when the step is stored. None: `self_play_update_freq` and twice the updates that a sample
                of all EnvRunners allows.
        """
        super().env_runners(**kwargs)
        return self._set(sample_asynchronously=sample_asynchronously, max_sample_staleness=max_sample_staleness)

    def learners(self: Config, *, sync_batch_norm: bool | None = NotProvided, **kwargs: Any) -> Config:
        """Sets how many Learners there are and on what they run; keywords not listed here are RLlib's.

        Args:
            sync_batch_norm: batch normalisation over the batches of all Learners together, as if there were one; torch
                has it for GPUs only. Without it each normalises by its own share of the batch.
        """
        super().learners(**kwargs)
        return self._set(sync_batch_norm=sync_batch_norm)

    def resources(self: Config, *, wait_for_resources: bool | None = NotProvided, **kwargs: Any) -> Config:
        """Sets what the run asks of the cluster; keywords not listed here are RLlib's.

        Args:
            wait_for_resources: the cluster adds nodes when asked for more than it has. Else that is an error at once.
        """
        super().resources(**kwargs)
        return self._set(wait_for_resources=wait_for_resources)

    def validate(self) -> None:
        """As RLlib's."""
        super().validate()
        # At every iteration RLlib would wait for all EnvRunners to ask for their connectors' states; ours have none.
        self._dont_auto_sync_env_runner_states = self.sample_asynchronously

    # --- What the parts are built from -----------------------------------------------------------------------------

    def num_envs(self) -> int:
        """Environments of all EnvRunners."""
        return self.num_envs_per_env_runner * max(1, self.num_env_runners)

    def updates_per_sample(self) -> int:
        """The most updates that a sample of all EnvRunners can owe: they may return a step per environment too many."""
        return max(1, math.ceil(self.replay_ratio * (self.rollout_fragment_length + 1) * self.num_envs()))

    def sample_staleness_bound(self) -> int:
        """`max_sample_staleness`, its default resolved."""
        given = self.max_sample_staleness
        return self.self_play_update_freq + 2 * self.updates_per_sample() if given is None else given

    def prefetched_batches(self) -> int:
        """`reanalyze_prefetch`, its default resolved."""
        if self.reanalyze_prefetch is not None:
            return self.reanalyze_prefetch
        return self.num_reanalyze_actors or (BATCHES_AHEAD if self.has_gpu_in_this_process() else 0)

    def has_gpu_in_this_process(self) -> bool:
        """Whether the Learner is in the algorithm's process, and computes on a GPU."""
        return self.num_learners == 0 and self.num_gpus_per_learner > 0 and torch.cuda.is_available()

    def _set(self: Config, **values: Any) -> Config:
        for key, value in values.items():
            if value is not NotProvided:
                setattr(self, key, value)
        return self
