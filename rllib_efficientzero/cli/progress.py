"""What a result says about the run's progress: the columns of the live table and of the plain lines. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rllib_efficientzero import metrics
from rllib_efficientzero.cli.stopping import ENV_STEPS, EPISODE_RETURN, EVALUATION_RETURN, lookup

SIMULATIONS = f"env_runners/{metrics.SEARCH}/{metrics.SIMULATIONS_PER_S}"

GROWING = ("training_iteration", "time_total_s", "time_since_restore", ENV_STEPS, metrics.NUM_UPDATES_LIFETIME)
"""Metrics that grow steadily, so that the time until they reach a criterion can be told."""

WINDOW = 20
"""Number of last reports over which rates are computed."""


@dataclass
class TrialProgress:
    """The progress of one trial, from its last reports."""

    criteria: Mapping[str, float]
    budget: Mapping[str, float] = field(default_factory=dict)
    """Metric -> its value at the end of the run, which ends once all are reached; empty if the run has no budget."""
    history: deque[tuple[float, float, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    """(seconds, fraction done, environment steps) of the last reports."""

    def update(self, result: Mapping[str, Any]) -> dict[str, str]:
        """Column -> text for a new result; a column whose metric the algorithm does not report is left out."""
        steps = lookup(result, ENV_STEPS)
        seconds = lookup(result, "time_total_s") or 0.0
        self.history.append((seconds, self._fraction(result), steps or 0.0))
        columns = {
            "iter": _count(lookup(result, "training_iteration")),
            "env steps": self._steps(result),
            "updates": _count(lookup(result, metrics.NUM_UPDATES_LIFETIME)),
            "replay ratio": _number(lookup(result, metrics.EFFECTIVE_REPLAY_RATIO)),
            "return": _number(lookup(result, EPISODE_RETURN)),
            "eval return": _number(lookup(result, EVALUATION_RETURN)),
            "sims/s": _count(lookup(result, SIMULATIONS)),
            "steps/s": _number(self._steps_per_second(seconds)),
            "elapsed": duration(seconds),
            "left": self._time_left(),
        }
        return {name: text for name, text in columns.items() if text}

    def _steps(self, result: Mapping[str, Any]) -> str:
        """Text of the steps so far: with a budget, its interactions, which include those hidden in resets."""
        counted = metrics.NUM_INTERACTIONS_LIFETIME if self.budget else ENV_STEPS
        steps, target = lookup(result, counted), {**self.criteria, **self.budget}.get(counted)
        if steps is None or not target:
            return _count(steps)
        return f"{steps:,.0f}/{target:,.0f} ({min(steps / target, 1):.0%})"

    def _fraction(self, result: Mapping[str, Any]) -> float:
        """Fraction of the run that is done: the larger of that of the criterion nearest to being met, and that of the
        budget's metric farthest from its end, since the whole budget is to be spent."""

        def shares(targets: Mapping[str, float], names: Iterable[str]) -> list[float]:
            return [(lookup(result, name) or 0.0) / targets[name] for name in names if targets.get(name)]

        return max([*shares(self.criteria, GROWING), min(shares(self.budget, self.budget), default=0.0)])

    def _steps_per_second(self, seconds: float) -> float | None:
        first, last = self.history[0], self.history[-1]
        if len(self.history) == 1:
            return last[2] / seconds if seconds and last[2] else None
        return (last[2] - first[2]) / (last[0] - first[0]) if last[0] > first[0] else None

    def _time_left(self) -> str:
        """Text of the time left, at the pace of the last reports; empty before the second report."""
        first, last = self.history[0], self.history[-1]
        gained, spent = last[1] - first[1], last[0] - first[0]
        if gained <= 0 or spent <= 0:
            return ""
        return duration(max(1 - last[1], 0) / gained * spent)


def duration(seconds: float) -> str:
    """`4s`, `3m20s`, `2h05m`, `1d03h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
