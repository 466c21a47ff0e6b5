"""Visit counts to actions."""

from __future__ import annotations

import numpy as np
import pytest

from rllib_efficientzero.mcts import greedy_action, sample_action

COUNTS = np.array([10, 30, 0, 60], dtype=np.int32)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.25, 2.0])
def test_frequencies_follow_the_counts_to_the_power_of_one_over_temperature(temperature: float) -> None:
    draws = 20_000
    actions = sample_action(np.tile(COUNTS, (draws, 1)), temperature, np.random.default_rng(0))
    observed = np.bincount(actions, minlength=4)
    weights = COUNTS.astype(float) ** (1.0 / temperature)
    expected = draws * weights / weights.sum()
    assert observed[2] == 0
    used = expected > 0
    chi_square = ((observed - expected)[used] ** 2 / expected[used]).sum()
    assert chi_square < 13.8  # 99.9 % with two degrees of freedom


def test_temperature_zero_takes_the_first_of_the_most_visited() -> None:
    counts = np.array([[1, 5, 5, 0], [7, 0, 0, 7], [0, 0, 0, 1]])
    assert sample_action(counts, 0.0, np.random.default_rng(0)).tolist() == [1, 0, 3]
    assert greedy_action(counts).tolist() == [1, 0, 3]


def test_small_temperatures_neither_overflow_nor_pick_unvisited_actions() -> None:
    counts = np.tile(np.array([0, 40, 0, 10], dtype=np.int32), (1000, 1))
    assert np.all(sample_action(counts, 1e-3, np.random.default_rng(0)) == 1)
    with np.errstate(all="raise"):
        assert set(sample_action(counts, 1.0, np.random.default_rng(0)).tolist()) == {1, 3}


def test_rows_are_drawn_apart_and_from_the_given_generator_only() -> None:
    counts = np.tile(COUNTS, (100, 1))
    first, again = (sample_action(counts, 1.0, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first, again)
    assert len(set(first.tolist())) == 3
