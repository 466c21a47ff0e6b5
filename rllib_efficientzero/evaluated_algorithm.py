"""Evaluation of an Algorithm: every score is recorded under the step and update whose weights were evaluated."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import logging
import threading
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import tree
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EVALUATION_RESULTS

from rllib_efficientzero import interruption, run_files
from rllib_efficientzero import metrics as names
from rllib_efficientzero.env.evaluating import evaluate_remotely
from rllib_efficientzero.env.runner_state import generators_kept
from rllib_efficientzero.scaled_algorithm import ScaledAlgorithm

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Subject:
    """The state of training that an evaluation is about."""

    num_interactions: int
    num_updates: int
    iteration: int
    """the iteration whose result contains the evaluation: a run resumed from before its end evaluates again"""
    weights: dict[str, Any] | None = None
    """the Learners' weights, as RLlib sends them to EnvRunners; None: the Learners' current ones"""


class EvaluatedAlgorithm(ScaledAlgorithm):
    """The base class that evaluates `EfficientZero`, and records scores under the right weights and steps."""

    eval_env_runner_group: EnvRunnerGroup | None
    _subject: Subject | None = None
    """Set while an iteration evaluates."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As RLlib's, but always with separate EnvRunners. The score of every episode is written to `evaluation.json`
        in the run's directory."""
        subject = self._subject or self._subject_of(self.iteration)
        with contextlib.ExitStack() as stack:
            if self.config.evaluation_num_env_runners == 0:
                # An evaluation in this process must not move the generators that training draws from.
                stack.enter_context(generators_kept())
            if self.eval_env_runner_group is None:
                self.eval_env_runner_group = self._make_evaluation_runner()
            if subject.weights is not None:
                stack.enter_context(_sent_instead(self.eval_env_runner_group, subject.weights))
            _forget_last(self.metrics)
            results = super().evaluate(*args, **kwargs)
        self._record(subject, results)
        return results

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """As RLlib's, but restores no evaluation EnvRunners while they evaluate beside training: that may read the
        Learners' state."""
        if self._is_beside_training() and env_runner_group is self.eval_env_runner_group:
            return []
        return super().restore_env_runners(env_runner_group)

    def _run_one_evaluation(self, parallel_train_future: Any = None) -> dict[str, Any]:
        if self._subject is not None:
            return super()._run_one_evaluation(parallel_train_future)
        self._subject = self._subject_of(self.iteration + 1)
        try:
            return super()._run_one_evaluation(parallel_train_future)
        finally:
            self._subject = None

    def _run_one_training_iteration_and_evaluation_in_parallel(self) -> tuple[Any, Any, Any]:
        """As RLlib's, but evaluates the weights from before the training iteration.

        RLlib would ask the Learner for its weights while another thread updates them. The Learner would then fit its
        normalisation statistics in a forward pass, and both threads would compute wrong numbers.
        """
        group = self.eval_env_runner_group
        restored = self.restore_env_runners(group)
        if restored:
            self._make_on_env_runners_recreated_callbacks(
                config=self.evaluation_config, env_runner_group=group, restored_env_runner_indices=restored
            )
        # RLlib copies the weights when it converts them to NumPy arrays, so that training does not change these.
        state = self.learner_group.get_state(
            components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
        )
        self._subject = dataclasses.replace(self._subject_of(self.iteration + 1), weights=state[COMPONENT_LEARNER])
        # RLlib's logger takes its lock, which locks nothing: one thread's reduction failed at the other's new keys.
        own_lock, self.metrics._threading_lock = self.metrics._threading_lock, threading.RLock()
        try:
            with concurrent.futures.ThreadPoolExecutor(max_workers=1) as executor:
                training = executor.submit(self._run_one_training_iteration)
                evaluation_results = self._run_one_evaluation(parallel_train_future=training)
                train_results, context = training.result()
        finally:
            self._subject = None
            self.metrics._threading_lock = own_lock
        return train_results, evaluation_results, context

    def _evaluate_with_fixed_duration(self) -> tuple[None, int, int, list[Any]]:
        """As RLlib's, whatever happens to the EnvRunners; see `env.evaluating`."""
        played = evaluate_remotely(self.eval_env_runner_group, self.config)
        self.metrics.aggregate([each.metrics for each in played], key=(EVALUATION_RESULTS, ENV_RUNNER_RESULTS))
        num_steps = sum(each.num_steps for each in played)
        return None, num_steps, num_steps, []

    def _make_evaluation_runner(self) -> EnvRunnerGroup:
        """Makes an evaluation EnvRunner in this process, for configs without `evaluation_interval`.

        RLlib would evaluate with the training EnvRunner: it would cut its episodes short, seed its environments anew,
        give it other weights, and explore.
        """
        config = self.evaluation_config
        _, make_env = self._get_env_id_and_creator(config.env, config)
        return EnvRunnerGroup(
            env_creator=make_env,
            default_policy_class=None,
            config=config,
            local_env_runner=True,
            logdir=self.logdir,
            tune_trial_id=self.trial_id,
        )

    def _num_episodes_asked_for(self) -> int:
        """The number of episodes of an evaluation; 0 if its length is not given in episodes."""
        config = self.config
        by_episodes = config.evaluation_duration_unit == "episodes" and config.evaluation_duration != "auto"
        return config.evaluation_duration if by_episodes and not config.custom_evaluation_function else 0

    def _is_beside_training(self) -> bool:
        return self._subject is not None and self._subject.weights is not None

    def _subject_of(self, iteration: int) -> Subject:
        return Subject(self.num_interactions, self.num_updates, iteration)

    def _record(self, subject: Subject, results: dict[str, Any]) -> None:
        runners = results.get(ENV_RUNNER_RESULTS, {})
        returns, lengths = runners.get(names.EPISODE_RETURNS, []), runners.get(names.EPISODE_LENGTHS, [])
        # RLlib reduces an empty series, as an interrupted evaluation leaves it, to NaN.
        num_scores = len(returns) if np.ndim(returns) == 1 else 0
        num_missing = self._num_episodes_asked_for() - num_scores
        if num_missing > 0 and not interruption.requested():
            logger.warning(
                "of %d episodes of an evaluation after %d steps and %d updates %d have no score: their EnvRunners were "
                "lost",
                *(num_scores + num_missing, subject.num_interactions, subject.num_updates, num_missing),
            )
        if num_scores == 0:
            return
        record: dict[str, Any] = {
            run_files.ITERATION: subject.iteration,
            names.NUM_INTERACTIONS_LIFETIME: subject.num_interactions,
            names.NUM_UPDATES_LIFETIME: subject.num_updates,
            names.EPISODE_RETURNS: [float(value) for value in returns],
            names.EPISODE_LENGTHS: [int(value) for value in lengths],
        }
        if num_missing > 0:
            record[names.NUM_EPISODES_MISSING] = num_missing
        run_files.append_evaluation(self._run_files_place(), self.config.describe_protocol(), record)


@contextlib.contextmanager
def _sent_instead(group: EnvRunnerGroup, weights: dict[str, Any]) -> Iterator[None]:
    """Within, RLlib sends these weights to the group's EnvRunners, whichever it would send otherwise."""
    source = types.SimpleNamespace(get_state=lambda **_: weights)

    def sync_weights(*, from_worker_or_learner_group: Any, **kwargs: Any) -> None:
        EnvRunnerGroup.sync_weights(group, from_worker_or_learner_group=source, **kwargs)

    group.sync_weights = sync_weights
    try:
        yield
    finally:
        del group.sync_weights


def _forget_last(metrics: Any) -> None:
    """Drops the results of the last evaluation, which RLlib would return again if no episode is played."""
    for stats in tree.flatten(metrics.stats.get(EVALUATION_RESULTS, {})):
        stats.latest_merged = None
