"""Aggregates of human-normalised scores and their bootstrap intervals (Agarwal et al. 2021, "Statistical Precipice").

Scores are one array per task, `[..., runs]`. Tasks may have different numbers of runs. Leading axes, such as the
repetitions of the bootstrap, are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Scores = Sequence[np.ndarray]
Statistic = Callable[[Scores], np.ndarray]


def mean(scores: Scores) -> np.ndarray:
    """Mean over tasks of each task's mean over runs; `[...]`."""
    return _task_means(scores).mean(axis=-1)


def median(scores: Scores) -> np.ndarray:
    """Median over tasks of each task's mean over runs; `[...]`."""
    return np.median(_task_means(scores), axis=-1)


def iqm(scores: Scores) -> np.ndarray:
    """Interquartile mean: of the runs of all tasks together, without the lowest and the highest quarter; `[...]`.

    With one run per task, as in a published column, it is the interquartile mean over tasks, which is not comparable
    with that over runs: state this next to it.
    """
    pooled = np.sort(np.concatenate(scores, axis=-1), axis=-1)
    cut = pooled.shape[-1] // 4
    return pooled[..., cut : pooled.shape[-1] - cut].mean(axis=-1)


def optimality_gap(scores: Scores) -> np.ndarray:
    """Mean over tasks of the shortfall of runs from the human score (0 for runs above it); less is better; `[...]`."""
    return _task_means([1.0 - np.minimum(runs, 1.0) for runs in scores]).mean(axis=-1)


STATISTICS: dict[str, Statistic] = {"mean": mean, "median": median, "IQM": iqm, "optimality gap": optimality_gap}


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, if that can be known."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(
    scores: Scores, statistic: Statistic, *, repetitions: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Computes a statistic with its stratified percentile bootstrap interval.

    Runs are drawn with replacement within each task: the tasks are fixed by the benchmark, only runs are a sample. As a
    single run does not show how runs vary, there is no interval without two runs of every task.

    Args:
        scores: `[runs]` per task.
        statistic: of `STATISTICS`.
        repetitions: of the bootstrap.
        confidence: coverage of the interval.
        seed: of the draws.
    """
    value = float(statistic(scores))
    if min(len(runs) for runs in scores) < 2:
        return Interval(value)
    rng = np.random.default_rng(seed)
    drawn = [runs[rng.integers(len(runs), size=(repetitions, len(runs)))] for runs in scores]
    low, high = np.quantile(statistic(drawn), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def _task_means(scores: Scores) -> np.ndarray:
    """Returns each task's mean over runs; `[..., tasks]`."""
    return np.stack([runs.mean(axis=-1) for runs in scores], axis=-1)
