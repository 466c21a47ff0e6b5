"""Finds what is wrong with an environment by playing it briefly; every finding is a sentence that says the cure.

`examine` makes an environment, checks its spaces and plays random legal actions. Findings that would prevent or stop
training are errors; findings with which training would run but hardly learn are warnings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym

from rllib_efficientzero.env.trial_play import BrokenError, Examination, Finding, Player, describe

SLOW_STEPS_PER_S = 20.0
EQUAL_ENDS = 3
"""If at least this many episodes all terminate after the same number of steps, that looks like a time limit."""
SHORTEST_LIMIT = 10
SMALLEST_RETURN = 1e-3
LARGEST_SUPPORT = 1_000
"""The largest support_size that is suggested."""
EPSILON = 0.001
"""Of the networks' value transform; repeated from `models.scalar_transform`, which would import torch."""


def examine(
    make: Callable[[], Any],
    *,
    support_size: int = 300,
    has_time_limit: bool = False,
    representation: str = "auto",
    max_steps: int = 2_500,
    seconds: float = 1.0,
) -> Examination:
    """Makes the environment and plays it.

    Args:
        make: makes the environment.
        support_size: of the networks, which limits how large rewards may be.
        has_time_limit: whether episodes are known to end.
        representation: the config's `action_representation`.
        max_steps: steps to play at most.
        seconds: approximate time to play at most.
    """
    examination = Examination()
    env = None
    try:
        env = _make(make)
        limited = has_time_limit or getattr(getattr(env, "spec", None), "max_episode_steps", None) is not None
        player = Player(env, examination, has_time_limit=limited, representation=representation)
        player.play(max_steps, seconds)
        examination.findings += player.warnings
        examination.findings += _judge(examination, player.lengths, support_size)
    except BrokenError as broken:
        examination.findings.append(broken.finding)
    finally:
        if isinstance(env, gym.Env):
            _close(env, examination)
    return examination


def largest_expressible(support_size: int) -> float:
    """The largest reward or return that networks with this support can express, as in `models.scalar_transform`."""
    slope = 1.0 + 2.0 * EPSILON
    root = 2.0 * support_size / (slope + math.sqrt(slope * slope + 4.0 * EPSILON * support_size))
    return root * (root + 2.0)


# --- Making -----------------------------------------------------------------------------------------------------------


def _make(make: Callable[[], Any]) -> gym.Env:
    try:
        env = make()
    except Exception as error:
        raise BrokenError(
            f"the environment cannot be made: {describe(error)}", "make it by hand first", in_play=False
        ) from error
    if isinstance(env, gym.vector.VectorEnv):
        raise BrokenError(
            f"what was made is a vector of {env.num_envs} environments",
            "make a single one, or train with gym_env_vectorize_mode 'vector_entry_point'",
            in_play=False,
        )
    if not isinstance(env, gym.Env):
        cure = "subclass gymnasium.Env"
        if type(env).__module__.partition(".")[0] == "gym" or hasattr(env, "step"):
            cure += " (environments of the old gym package: shimmy.GymV21CompatibilityV0 wraps them)"
        raise BrokenError(f"what was made is a {type(env).__name__}, not a gymnasium.Env", cure, in_play=False)
    for name in ("observation_space", "action_space"):
        space = getattr(env, name, None)
        if not isinstance(space, gym.Space):
            found = "no" if space is None else f"a {type(space).__name__} for its"
            raise BrokenError(
                f"the environment has {found} {name}",
                f"set self.{name} to one of gymnasium.spaces in __init__",
                in_play=False,
            )
    return env


def _close(env: gym.Env, examination: Examination) -> None:
    try:
        env.close()
    except Exception as error:
        examination.findings.append(
            Finding(f"close() raised {describe(error)}", "let it pass, whatever has happened before", is_error=False)
        )


# --- Judging ----------------------------------------------------------------------------------------------------------


def _judge(examination: Examination, lengths: list[tuple[int, bool]], support_size: int) -> list[Finding]:
    """Warnings that need all the episodes: about rewards, actions, episode lengths and speed."""
    findings = [*_reward_findings(examination, support_size)]
    if examination.actions == "1 action":
        findings.append(Finding("there is only one action", "nothing can be decided; give a choice", is_error=False))
    ends = {length for length, _ in lengths}
    all_terminated = all(terminated for _, terminated in lengths)
    if len(lengths) >= EQUAL_ENDS and len(ends) == 1 and all_terminated and max(ends) >= SHORTEST_LIMIT:
        findings.append(
            Finding(
                f"all {len(lengths)} episodes were terminated after exactly {max(ends)} steps, as by a time limit",
                "if it is one, return truncated=True instead, so that the value of the last state is not taken for 0",
                is_error=False,
            )
        )
    speed = examination.steps_per_second
    if speed < SLOW_STEPS_PER_S and examination.steps:
        hours = 100_000 / speed / 3600
        findings.append(
            Finding(
                f"the environment plays {speed:.1f} steps per second: 100,000 take {hours:.1f} hours",
                "make it faster, or play several at a time (num_env_runners, gym_env_vectorize_mode: async)",
                is_error=False,
            )
        )
    return findings


def _reward_findings(examination: Examination, support_size: int) -> list[Finding]:
    limit = largest_expressible(support_size)
    largest_return = max((abs(value) for value in examination.returns), default=0.0)
    largest_reward = max((abs(value) for value in examination.rewards), default=0.0)
    largest = max(largest_reward, largest_return)
    if largest > limit:
        needed = math.ceil(math.sqrt(largest + 1) - 1 + EPSILON * largest)
        setting = f"support_size in model_config to at least {needed}"
        what = f"a reward of {largest_reward:g}" if largest_reward > limit else f"a return of {largest_return:g}"
        return [
            Finding(
                f"{what} is more than the networks can express ({limit:.0f} with a support_size of {support_size})",
                "scale the rewards down" + (f", or set {setting}" if needed <= LARGEST_SUPPORT else ""),
                is_error=False,
            )
        ]
    if 0 < largest < SMALLEST_RETURN:
        return [
            Finding(
                f"rewards are tiny: no return is beyond {largest:.1g}",
                "scale them up to about 1, or they are lost beside the errors of the networks",
                is_error=False,
            )
        ]
    return []
