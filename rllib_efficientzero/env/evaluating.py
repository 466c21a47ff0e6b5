"""Evaluates with all EnvRunners of a group, even if some of them fail or hang.

RLlib keeps asking EnvRunners that hang, and stops when enough episodes have ended, even if it did not keep them all.
Here an EnvRunner that fails or hangs is replaced, as in self-play, and the others play its share with other seeds.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from rllib_efficientzero.env.sampling import as_answer, ask, judge


@dataclasses.dataclass(frozen=True)
class Share:
    """What one EnvRunner is to play of an evaluation."""

    num: int
    by_episodes: bool
    evaluation_round: int = 0
    """0: the first shares; more: rounds in which the shares of EnvRunners that failed are played by the others"""
    force_reset: bool = False
    """only for shares in steps: begin new episodes instead of continuing those in progress"""


@dataclasses.dataclass(frozen=True)
class Played:
    """What one EnvRunner played of an evaluation, or why it could not."""

    worker_index: int
    num_steps: int = 0
    num_episodes: int = 0
    metrics: Any = None
    error: Exception | None = None


def play(env_runner: Any, share: Share) -> Played:
    """Plays a share; called in the EnvRunner's process. An error is returned in `Played`, not raised."""
    try:
        if share.by_episodes:
            episodes = env_runner.sample(num_episodes=share.num, evaluation_round=share.evaluation_round)
        else:
            episodes = env_runner.sample(num_timesteps=share.num, force_reset=share.force_reset)
        steps, ended = sum(map(len, episodes)), sum(episode.is_done for episode in episodes)
        return Played(env_runner.worker_index, steps, ended, env_runner.get_metrics())
    except Exception as error:
        return Played(env_runner.worker_index, error=as_answer(error))


def evaluate_remotely(group: Any, config: Any) -> list[Played]:
    """Plays `evaluation_duration` episodes or steps with the healthy EnvRunners; fewer if all of them are lost.

    An EnvRunner that does not answer within `evaluation_sample_timeout_s`, or whose environment failed, is replaced for
    the next evaluation, at most `max_num_env_runner_restarts` times.

    Args:
        group: the EnvRunnerGroup.
        config: the algorithm's.

    Raises:
        BadEnvStepError: an environment returned what cannot be learned from, and the config says to raise.
        NoEnvRunnersError: one failed that may be neither replaced nor ignored.
    """
    manager = group._worker_manager
    by_episodes = config.evaluation_duration_unit == "episodes"
    played: list[Played] = []
    num_left, evaluation_round = config.evaluation_duration, 0
    while num_left > 0:
        asked = sorted(manager.healthy_actor_ids())
        shares = {
            worker_index: Share(
                num,
                by_episodes,
                evaluation_round,
                force_reset=config.evaluation_force_reset_envs_before_iteration and evaluation_round == 0,
            )
            for worker_index, num in zip(asked, divided(num_left, len(asked)), strict=True)
            if num > 0
        }
        answers, failures = ask(
            manager,
            {index: functools.partial(play, share=share) for index, share in shares.items()},
            timeout_s=config.evaluation_sample_timeout_s,
            timeout_name="evaluation_sample_timeout_s",
        )
        judge(failures, config, "evaluation EnvRunner")
        # Sorted, so that the order of scores does not depend on which EnvRunner answers first.
        played += sorted(answers, key=lambda answer: answer.worker_index)
        num_left -= sum(answer.num_episodes if by_episodes else answer.num_steps for answer in answers)
        if not failures:
            break  # All EnvRunners have played their shares, or none is left.
        evaluation_round += 1
    return played


def divided(num: int, num_shares: int) -> list[int]:
    """Shares of `num` that differ by one at most, the larger ones first.

    >>> divided(7, 3)
    [3, 2, 2]
    """
    return [num // num_shares + (share < num % num_shares) for share in range(num_shares)]
