"""EfficientZero as an RLlib Algorithm (Ye et al., Mastering Atari Games with Limited Data, NeurIPS 2021)."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from ray.exceptions import RayTaskError
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    REPLAY_BUFFER_RESULTS,
)
from ray.tune.registry import register_trainable

from rllib_efficientzero import interruption, run_files
from rllib_efficientzero import metrics as names
from rllib_efficientzero.actors.batches import Batch
from rllib_efficientzero.efficientzero_config import EfficientZeroConfig
from rllib_efficientzero.efficientzero_learner import DivergedError
from rllib_efficientzero.env.sampling import NoEnvRunnersError, Sample, why_none_was_built
from rllib_efficientzero.evaluated_algorithm import EvaluatedAlgorithm
from rllib_efficientzero.schedules import linear


class EfficientZero(EvaluatedAlgorithm):
    """Self-play by search, prioritized replay, reanalysis in the learner connector, gradient steps at a fixed ratio."""

    config: EfficientZeroConfig

    @classmethod
    def get_default_config(cls) -> EfficientZeroConfig:
        return EfficientZeroConfig(algo_class=cls)

    def training_step(self) -> None:
        """env -> EnvRunner + search -> episodes -> replay -> windows -> reanalyze + Learner -> priorities, weights."""
        with self.batches.foreground():
            # Self-play waits while updates are owed: the ratio of updates to steps is exact on any machine.
            num_steps = self._steps_to_sample() if self._updates_owed() < 1 else 0
            if num_steps > 0 or self.self_play.must_collect(self.num_updates):
                self._prefetch_batches(self._updates_owed(num_steps))
                with self._timer(names.SAMPLE_TIMER):
                    episodes = self._sample(num_steps)
                with self._timer(names.REPLAY_ADD_TIMER):
                    self.batches.wait_for_draws()
                    self.local_replay_buffer.add(episodes)
            self._learn(self._updates_now(self._updates_owed()))
            if self.batches.has_unused():
                self.batches.discard()  # Fewer steps came than were asked for, and so fewer updates were due.
            self._log_progress()

    def _learn(self, num_updates: int) -> None:
        """Makes `num_updates` updates; fewer if the run has been asked to end."""
        num_batches = 0
        for num_following in reversed(range(num_updates)):
            is_interrupted = interruption.requested()
            if is_interrupted and not self.batches.has_unused():
                break  # A resumed run begins with the updates that are still owed.
            with self._timer(names.REPLAY_SAMPLE_TIMER):
                batch = self._next_batch(0 if is_interrupted else num_following)
            with self._timer(names.LEARNER_UPDATE_TIMER):
                position_ids, priorities = self._update(batch)
            num_batches += 1
            if len(position_ids) == 0:
                continue  # Not finite: the Learner changed nothing, counted it, and raises after too many in a row.
            with self._timer(names.UPDATE_PRIORITIES_TIMER):
                self.batches.wait_for_draws()
                self.local_replay_buffer.update_priorities(position_ids, priorities)
            self.num_updates += 1
            if self.num_updates == 1 or self.num_updates % self.config.self_play_update_freq == 0:
                with self._timer(names.SYNC_WEIGHTS_TIMER):
                    self.self_play.update_weights(self.learner_group, self.num_updates)
        if num_batches > 0:
            with self._timer(names.LEARNER_UPDATE_TIMER):
                self._report_updates()

    # --- How much to sample and to learn -----------------------------------------------------------------------------

    def _updates_owed(self, num_more_steps: int = 0) -> int:
        """Returns how many updates are due and not made yet, by the replay ratio or because the run ends, once
        `num_more_steps` more steps have been played."""
        if len(self.local_replay_buffer) < self.config.num_steps_sampled_before_learning_starts:
            return 0
        if self._steps_to_sample() == 0:
            return max(0, self.config.updates_at_end() - self.num_updates)
        return self.config.updates_due(self.num_interactions + num_more_steps) - self.num_updates

    def _updates_now(self, num_owed: int) -> int:
        """Returns how many of the updates owed are made in one iteration."""
        return max(0, min(num_owed, self.config.updates_per_sample()))

    def _steps_to_sample(self) -> int:
        """Returns how many steps to ask for so that the budget is never exceeded: all environments of a runner step
        together, so that a runner with n of them may return up to n - 1 steps too many."""
        remaining, num_envs = self.config.total_env_steps - self.num_interactions, self.config.num_envs()
        return max(0, min(self.config.rollout_fragment_length * num_envs, remaining - (num_envs - 1)))

    def _beta(self, num_updates: int) -> float:
        beta = self.config.replay_buffer_config["beta"]
        first, last = beta if isinstance(beta, list | tuple) else (beta, beta)
        return linear(first, last, num_updates / self.config.updates_at_end())

    # --- The stages of `training_step` -------------------------------------------------------------------------------

    def _sample(self, num_steps: int) -> list[Any]:
        """Returns episodes, or chunks of them, with about `num_steps` steps in all."""
        budget = self.config.total_env_steps - self.num_interactions
        return self._count(self.self_play.sample(num_steps, budget=budget, num_updates=self.num_updates))

    def _count(self, samples: list[Sample]) -> list[Any]:
        """Adds the samples' metrics and steps to the run's, and returns their episodes."""
        self.metrics.aggregate([sample.metrics for sample in samples], key=ENV_RUNNER_RESULTS)
        self._log_staleness([sample.staleness for sample in samples if sample.staleness is not None])
        self.num_interactions += sum(sample.num_steps for sample in samples)
        return [episode for sample in samples for episode in sample.episodes]

    def store_arrived(self) -> None:
        """See `CheckpointedAlgorithm`."""
        if episodes := self._count(self.self_play.take_arrived(self.num_updates)):
            self.batches.wait_for_draws()
            self.local_replay_buffer.add(episodes)

    def _prefetch_batches(self, num_owed: int) -> None:
        size, num_following = self.config.total_train_batch_size, self._updates_now(num_owed)
        self.batches.prefetch(size, beta=self._beta, num_updates=self.num_updates, num_following=num_following)

    def _next_batch(self, num_following: int) -> Batch:
        size, num_updates = self.config.total_train_batch_size, self.num_updates
        return self.batches.next(size, beta=self._beta, num_updates=num_updates, num_following=num_following)

    def _update(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """One gradient step on a batch of windows; returns the position ids and their new priorities."""
        try:
            results = self.learner_group.update(
                training_data=batch.training_data,
                timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: self.num_interactions},
                _no_metrics_reduce=True,
            )
        except DivergedError as error:
            # Ray wraps the error of a remote Learner, and puts the message inside that process's traceback.
            diverged = error.cause if isinstance(error, RayTaskError) else error
            run_files.write_divergence(self._run_files_place(), str(diverged), diverged.last_updates)
            raise diverged from None
        if not results:
            raise RuntimeError("no Learner returned a result: all of them are out of service; their logs say why")
        if batch.results:
            self.metrics.aggregate(batch.results, key=LEARNER_RESULTS)
        pairs = np.concatenate([result[DEFAULT_MODULE_ID][names.PRIORITIES] for result in results])
        return pairs[:, 0].astype(np.int64), pairs[:, 1]

    def _report_updates(self) -> None:
        """Adds what the Learners logged in this iteration to the algorithm's metrics."""
        reports = [answer.get() for answer in self.learner_group.foreach_learner(lambda learner: learner.report())]
        self.metrics.aggregate(reports, key=LEARNER_RESULTS)

    def _log_progress(self) -> None:
        ratio = self.num_updates / max(1, self.num_interactions)
        is_done = self._steps_to_sample() == 0 and self._updates_owed() == 0
        for key, value in (
            (names.NUM_INTERACTIONS_LIFETIME, self.num_interactions),
            (names.NUM_RAW_ENV_STEPS_LIFETIME, self.num_interactions * self.config.steps_per_decision()),
            (names.NUM_UPDATES_LIFETIME, self.num_updates),
            (names.EFFECTIVE_REPLAY_RATIO, ratio),
            (names.TRAINING_DONE, int(is_done)),
        ):
            self.metrics.log_value(key, value, reduce="item")
        for name in names.ITERATION_TIMERS:
            self.metrics.log_value((names.TIMERS, name), self._seconds.pop(name, 0.0), reduce="sum")
        self.metrics.log_dict(self.local_replay_buffer.get_metrics(), key=REPLAY_BUFFER_RESULTS, reduce="item")
        for name, value in self.batches.get_metrics().items():
            # RLlib keeps lifetime sums in the checkpoint.
            how = "lifetime_sum" if name.endswith("_lifetime") else "item"
            self.metrics.log_value((names.REANALYZE, name), value, reduce=how)

    def _log_staleness(self, updates: list[int]) -> None:
        for value in updates:
            self.metrics.log_value((ENV_RUNNER_RESULTS, names.SAMPLE_STALENESS, "mean"), value, window=100)
            self.metrics.log_value((ENV_RUNNER_RESULTS, names.SAMPLE_STALENESS, "max"), value, reduce="max", window=100)

    @contextlib.contextmanager
    def _timer(self, name: str) -> Iterator[None]:
        """Adds the block's seconds to this iteration's. RLlib's own timers take longer than some of these blocks."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - started

    # --- RLlib's hooks -----------------------------------------------------------------------------------------------

    def setup(self, config: Any) -> None:
        self.num_updates = 0
        self.num_interactions = 0
        self._seconds: defaultdict[str, float] = defaultdict(float)  # of this iteration, by timer
        try:
            super().setup(config)
        except IndexError as error:
            # RLlib asks the first EnvRunner for its spaces even if none could be built.
            if not config.num_env_runners:
                raise
            raise NoEnvRunnersError(f"no EnvRunner could be built: {why_none_was_built(config)}") from error
        run_files.write_protocol(self._run_files_place(), self.config.describe_protocol())

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        restored = super().restore_env_runners(env_runner_group)
        if restored:
            # A number that no generation had before: RLlib's count of restored EnvRunners starts again at a resume,
            # whereas the step count goes on, but may stand still between two restores.
            generation = (self.num_interactions << 20) + self._counters["total_num_restored_workers"]
            env_runner_group.foreach_env_runner(
                lambda env_runner: env_runner.begin_generation(generation),
                remote_worker_ids=restored,
                local_env_runner=False,
            )
        return restored


register_trainable("EfficientZero", EfficientZero)
