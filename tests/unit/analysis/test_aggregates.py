"""Aggregates and intervals: the published columns come out as published, and rliable agrees."""

from __future__ import annotations

import numpy as np
import pytest

from rllib_efficientzero.analysis import reference
from rllib_efficientzero.analysis.aggregates import STATISTICS, estimate, iqm, mean, median, optimality_gap


def column(method: str) -> list[np.ndarray]:
    return [np.array([game.normalise(game.scores[method])]) for game in reference.atari_games().values()]


@pytest.mark.parametrize("method", reference.ATARI_METHODS)
def test_published_columns_come_out_as_published(method: str) -> None:
    published = reference.published_atari()[method]
    # SPR's own rows give 0.7034, and 0.704 is printed.
    assert mean(column(method)) == pytest.approx(0.7034 if method == "spr" else published.mean, abs=6e-4)
    assert median(column(method)) == pytest.approx(published.median, abs=6e-4)


def test_there_are_26_games_and_efficientzero_beats_a_human_on_14() -> None:
    assert len(reference.atari_games()) == 26
    assert sum(float(runs[0]) > 1 for runs in column("efficientzero")) == 14
    assert iqm(column("efficientzero")) == pytest.approx(1.047, abs=6e-4)  # as printed by Alonso et al. 2024


def test_aggregates_of_known_scores() -> None:
    scores = [np.array([0.0, 2.0]), np.array([0.5, 0.5]), np.array([3.0])]
    assert mean(scores) == pytest.approx((1 + 0.5 + 3) / 3)
    assert median(scores) == 1.0
    # Of 0, .5, .5, 2, 3 a quarter, one, goes at each end.
    assert iqm(scores) == pytest.approx(1.0)
    assert optimality_gap(scores) == pytest.approx((0.5 + 0.5 + 0.0) / 3)


def test_one_run_per_task_has_no_interval() -> None:
    assert estimate([np.array([1.0]), np.array([2.0, 3.0])], mean).low is None


def test_the_interval_of_the_mean_is_that_of_theory() -> None:
    rng = np.random.default_rng(1)
    scores = [rng.normal(task, 1.0, size=40) for task in range(5)]
    interval = estimate(scores, mean, repetitions=4000)
    error = np.sqrt(sum(np.var(runs) / len(runs) for runs in scores)) / 5
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low == pytest.approx(interval.value - 1.96 * error, abs=0.1 * error)
    assert interval.high == pytest.approx(interval.value + 1.96 * error, abs=0.1 * error)


def test_runs_are_drawn_within_their_task() -> None:
    # Tasks differ, runs of a task do not: a bootstrap over tasks would find an interval.
    interval = estimate([np.full(3, 1.0), np.full(3, 9.0)], mean)
    assert interval.low == interval.high == 5.0


def test_rliable_agrees() -> None:
    library = pytest.importorskip("rliable.library")
    metrics = pytest.importorskip("rliable.metrics")
    theirs = {
        "mean": metrics.aggregate_mean,
        "median": metrics.aggregate_median,
        "IQM": metrics.aggregate_iqm,
        "optimality gap": metrics.aggregate_optimality_gap,
    }
    scores = np.random.default_rng(0).gamma(1.0, 1.0, size=(5, 26))  # [runs, tasks]
    points, intervals = library.get_interval_estimates(
        {"x": scores}, lambda x: np.array([theirs[name](x) for name in STATISTICS]), reps=2000
    )
    for index, (name, statistic) in enumerate(STATISTICS.items()):
        ours = estimate(list(scores.T), statistic)
        assert ours.value == pytest.approx(points["x"][index]), name
        assert ours.low is not None
        assert ours.high is not None
        width = ours.high - ours.low
        assert [ours.low, ours.high] == pytest.approx(intervals["x"][:, index], abs=0.08 * width), name
