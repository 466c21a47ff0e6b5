"""The arithmetic of the targets against loops over whole episodes."""

from __future__ import annotations

import numpy as np
import pytest
from brute_force import Episode, n_step_target, random_episode

from rllib_efficientzero.targets import (
    bootstrap_times,
    dynamic_horizon,
    n_step_targets,
    step_masks,
    value_prefix_targets,
)


@pytest.mark.parametrize(
    ("age", "horizon"),
    [
        *[(0, 5), (1, 5), (29_999, 5), (30_000, 4), (59_999, 4), (60_000, 3), (89_999, 3), (90_000, 2), (119_999, 2)],
        *[(120_000, 1), (1_000_000, 1)],
    ],
)
def test_the_papers_schedule(age: int, horizon: int) -> None:
    assert dynamic_horizon(np.array([age]), td_steps=5, decay_steps=30_000.0).tolist() == [horizon]


def test_without_correction_all_rewards_are_trusted() -> None:
    assert dynamic_horizon(np.array([0, 10**9]), 5, float("inf")).tolist() == [5, 5]


def test_bootstrap_times_stop_at_the_end() -> None:
    times = bootstrap_times(np.array([5, 2]), np.array([100, 4]), unroll_steps=5)
    assert times.tolist() == [[5, 6, 7, 8, 9, 10], [2, 3, 4, 4, 4, 4]]


def targets_of(episode: Episode, t: int, horizon: int, gamma: float, unroll_steps: int, td_steps: int) -> np.ndarray:
    """What `n_step_targets` makes of position t; what lies beyond the end is garbage on purpose."""
    left = len(episode) - t
    rewards = np.full(unroll_steps + td_steps, 99.0, dtype=np.float32)
    rewards[:left] = episode.rewards[t : t + unroll_steps + td_steps]
    times = bootstrap_times(np.array([horizon]), np.array([left]), unroll_steps)[0]
    values = episode.values[t + times].astype(np.float32)
    return n_step_targets(
        rewards[None],
        values[None],
        np.array([horizon]),
        np.array([left]),
        np.array([episode.terminated]),
        gamma,
    )[0]


@pytest.mark.parametrize("terminated", [True, False])
@pytest.mark.parametrize("horizon", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("gamma", [0.997**4, 0.5, 1.0, 1e-3, 0.0])
def test_n_step_targets_equal_a_loop(terminated: bool, horizon: int, gamma: float) -> None:
    rng = np.random.default_rng(horizon)
    for length in (1, 2, 5, 6, 11, 30):
        episode = random_episode(rng, length, terminated=terminated)
        for t in range(length):
            found = targets_of(episode, t, horizon, gamma, unroll_steps=5, td_steps=5)
            for k in range(6):
                if t + k > length:
                    continue  # beyond an end nothing is trained on
                expected = n_step_target(episode, t + k, horizon, gamma)
                assert found[k] == pytest.approx(expected, rel=1e-5, abs=1e-6), (length, t, k)


def test_a_terminal_state_is_worth_nothing_at_and_beyond_it() -> None:
    episode = Episode(np.array([1.0, 2.0]), np.array([10.0, 20.0, 30.0]), terminated=True)
    found = targets_of(episode, 0, horizon=5, gamma=0.5, unroll_steps=5, td_steps=5)
    assert found.tolist() == [1.0 + 0.5 * 2.0, 2.0, 0.0, 0.0, 0.0, 0.0]


def test_a_truncated_end_is_worth_its_value() -> None:
    episode = Episode(np.array([1.0, 2.0]), np.array([10.0, 20.0, 30.0]), terminated=False)
    found = targets_of(episode, 0, horizon=5, gamma=0.5, unroll_steps=5, td_steps=5)
    assert found.tolist()[:3] == [1.0 + 0.5 * 2.0 + 0.25 * 30.0, 2.0 + 0.5 * 30.0, 30.0]
    assert np.all(np.isfinite(found))


def test_a_terminal_value_is_not_used_even_if_it_is_nan() -> None:
    found = n_step_targets(
        np.array([[1.0, np.nan, np.nan]], dtype=np.float32),
        np.array([[np.nan, np.nan]], dtype=np.float32),
        np.array([2]),
        np.array([1]),
        np.array([True]),
        0.9,
    )
    assert found.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("horizon", "expected"),
    [
        (1, [[1, 2, 3, 4, 5, 6], [1, 2, 0, 0, 0, 0]]),
        (3, [[1, 3, 6, 4, 9, 15], [1, 3, 3, 0, 0, 0]]),
        (5, [[1, 3, 6, 10, 15, 6], [1, 3, 3, 3, 3, 0]]),
    ],
)
def test_value_prefixes_by_hand(horizon: int, expected: list[list[float]]) -> None:
    rewards = np.array([[1, 2, 3, 4, 5, 6, 7], [1, 2, 99, 99, 99, 99, 99]], dtype=np.float32)
    found = value_prefix_targets(rewards, np.array([50, 2]), unroll_steps=6, horizon=horizon)
    assert found.dtype == np.float32
    assert found.tolist() == expected


def test_masks_by_hand() -> None:
    assert step_masks(np.array([1, 3, 5, 9]), 5).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
    ]
