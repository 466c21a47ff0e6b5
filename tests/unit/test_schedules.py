"""Schedules by hand."""

from __future__ import annotations

import pytest

from rllib_efficientzero.schedules import linear, piecewise_constant, warmup_step_decay


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        *[(0, 0.0), (1, 0.0002), (500, 0.1), (999, 0.1998), (1_000, 0.2), (100_999, 0.2), (101_000, 0.02)],
        *[(119_999, 0.02), (200_999, 0.02), (201_000, 0.002)],
    ],
)
def test_the_papers_learning_rate(update: int, expected: float) -> None:
    rate = warmup_step_decay(update, 0.2, warmup_updates=1_000, decay_rate=0.1, decay_updates=100_000)
    assert rate == pytest.approx(expected)


def test_without_warm_up_the_first_update_has_the_full_rate() -> None:
    assert warmup_step_decay(0, 0.5, warmup_updates=0, decay_rate=0.1, decay_updates=10) == 0.5


@pytest.mark.parametrize(
    ("update", "expected"), [(0, 1.0), (49_999, 1.0), (50_000, 0.5), (74_999, 0.5), (75_000, 0.25), (10**9, 0.25)]
)
def test_the_papers_temperatures(update: int, expected: float) -> None:
    assert piecewise_constant([(0, 1.0), (50_000, 0.5), (75_000, 0.25)], update) == expected


def test_one_point_is_a_constant() -> None:
    assert piecewise_constant([(0, 0.7)], 12345) == 0.7


@pytest.mark.parametrize(("fraction", "expected"), [(-1.0, 0.4), (0.0, 0.4), (0.5, 0.7), (1.0, 1.0), (2.0, 1.0)])
def test_linear_stays_within_its_ends(fraction: float, expected: float) -> None:
    assert linear(0.4, 1.0, fraction) == pytest.approx(expected)
