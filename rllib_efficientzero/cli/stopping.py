"""Stop criteria: which metric names they may use, old names translated, and when a result meets them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rllib_efficientzero import metrics
from rllib_efficientzero.config_schema import ConfigError, UnknownKeyError, WrongTypeError, edit_distance, nearest

ENV_STEPS = "num_env_steps_sampled_lifetime"
EPISODE_RETURN = "env_runners/episode_return_mean"
EVALUATION_RETURN = "evaluation/env_runners/episode_return_mean"

RENAMED_METRICS = {
    "timesteps_total": ENV_STEPS,
    "agent_timesteps_total": ENV_STEPS,
    "num_env_steps_sampled": ENV_STEPS,
    "num_agent_steps_sampled": ENV_STEPS,
    "num_steps_sampled": ENV_STEPS,
    "num_env_steps_trained": "learners/__all_modules__/num_env_steps_trained_lifetime",
    "episodes_total": "env_runners/num_episodes_lifetime",
    "episode_reward_mean": EPISODE_RETURN,
    "episode_reward_max": "env_runners/episode_return_max",
    "episode_reward_min": "env_runners/episode_return_min",
    "episode_len_mean": "env_runners/episode_len_mean",
    "evaluation/episode_reward_mean": EVALUATION_RETURN,
}
"""Metric names of RLlib's old API stack."""

KNOWN_METRICS = (
    "training_iteration",
    "time_total_s",
    "time_this_iter_s",
    "time_since_restore",
    "iterations_since_restore",
    ENV_STEPS,
    metrics.NUM_UPDATES_LIFETIME,
    metrics.NUM_INTERACTIONS_LIFETIME,
    metrics.NUM_RAW_ENV_STEPS_LIFETIME,
    metrics.EFFECTIVE_REPLAY_RATIO,
    metrics.TRAINING_DONE,
    EPISODE_RETURN,
    "env_runners/episode_return_max",
    "env_runners/episode_return_min",
    "env_runners/episode_len_mean",
    "env_runners/num_episodes_lifetime",
    "env_runners/num_env_steps_sampled_lifetime",
    EVALUATION_RETURN,
    "evaluation/env_runners/episode_return_max",
    "evaluation/env_runners/episode_return_min",
    "evaluation/env_runners/episode_len_mean",
    "learners/__all_modules__/num_env_steps_trained_lifetime",
)
"""Metrics that stop criteria usually name; others in `SECTIONS` are accepted, with a warning if they look misspelt."""

SECTIONS = (
    *("env_runners", "evaluation", "learners", "replay_buffer", "timers", "perf", "fault_tolerance"),
    *("env_runner_group", "custom_metrics", "config"),
)
"""First parts of a result's nested keys."""


def resolve_stop(stop: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """Returns stop criteria under the metrics' current names, with numeric thresholds, and warnings about them.

    Raises:
        ConfigError: A metric is in no result, or is named twice, or a threshold is no number.
    """
    criteria: dict[str, float] = {}
    warnings: list[str] = []
    for written, value in _flatten(stop):
        name = _current_name(written, warnings)
        if name in criteria:
            raise ConfigError(f"stop criterion {name!r} is given twice", (written,))
        criteria[name] = _threshold(written, value)
    return criteria, warnings


def is_met(criteria: Mapping[str, float], result: Mapping[str, Any]) -> bool:
    """Whether a result (nested or flat) has reached any criterion. A metric that is not reported yet is not reached."""
    for name, threshold in criteria.items():
        value = lookup(result, name)
        if value is not None and value >= threshold:
            return True
    return False


def is_raised(before: Mapping[str, float], now: Mapping[str, float]) -> bool:
    """Whether any criterion now has a higher threshold than before, or is gone."""
    return any(now.get(name, math.inf) > threshold for name, threshold in before.items())


def lookup(result: Mapping[str, Any], name: str) -> float | None:
    """The number at `a/b/c`, or None where there is none."""
    value: Any = result.get(name)
    if value is None:
        value = result
        for part in name.split("/"):
            value = value.get(part) if isinstance(value, Mapping) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if number != number else number  # NaN: RLlib's "no episode has ended yet".


def _flatten(stop: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Flattens nested criteria: `{env_runners: {episode_return_mean: 20}}` means the same as with slashes."""
    pairs: list[tuple[str, Any]] = []
    for key, value in stop.items():
        name = f"{prefix}{key}"
        pairs += _flatten(value, f"{name}/") if isinstance(value, Mapping) else [(name, value)]
    return pairs


def _current_name(written: str, warnings: list[str]) -> str:
    """Returns the name that a metric has in results today.

    Raises:
        UnknownKeyError: No result has it.
    """
    bare = written.removeprefix("sampler_results/").removeprefix("env_runners/")
    bare = bare.replace("evaluation/sampler_results/", "evaluation/")
    if written in KNOWN_METRICS:
        return written
    if bare in RENAMED_METRICS:
        name = RENAMED_METRICS[bare]
        warnings.append(f"stop criterion {written!r} is now called {name!r}")
        return name
    section = written.split("/")[0]
    suggestion = nearest(written, KNOWN_METRICS)
    if "/" not in written or section not in SECTIONS:
        candidates = [*KNOWN_METRICS, *RENAMED_METRICS, *(name.split("/")[-1] for name in KNOWN_METRICS)]
        error = UnknownKeyError(written, candidates, "stop", (written,))
        raise _spell_out(error)
    if suggestion and edit_distance(written, suggestion) <= 2:
        warnings.append(f"stop criterion {written!r} is no metric of RLlib's own; did you mean {suggestion!r}?")
    return written


def _spell_out(error: UnknownKeyError) -> UnknownKeyError:
    """The same error, suggesting today's full name."""
    full = {name.split("/")[-1]: name for name in reversed(KNOWN_METRICS)}
    name = error.suggestion or ""
    error.suggestion = RENAMED_METRICS.get(name) or full.get(name, name) or None
    hint = f"did you mean {error.suggestion!r}?" if error.suggestion else "nested metrics are written 'section/name'"
    error.message = f"unknown stop criterion {error.key!r}; {hint}"
    return error


def _threshold(name: str, value: Any) -> float:
    """The number from which on the criterion is met."""
    if isinstance(value, bool) and name == metrics.TRAINING_DONE:
        return float(value)
    try:
        number = float(value) if not isinstance(value, bool | None) else float("nan")
    except (TypeError, ValueError):
        number = float("nan")
    if number != number:
        raise WrongTypeError(f"stop criterion {name!r} must be a number, not {value!r}", (name,))
    return number
