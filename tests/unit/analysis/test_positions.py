"""Positions are drawn from whole games, each step as likely as any other."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_efficientzero.analysis.positions import Played, sample_positions


class Lives(gym.Env):
    """Three lives of 40, 100 and 260 steps; the observation and the reward are the step of the game."""

    observation_space = gym.spaces.Box(0.0, 1e4, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)
    ends = (40, 140, 400)

    def __init__(self) -> None:
        self.time = 0

    @property
    def game_goes_on(self) -> bool:
        return self.time in self.ends[:-1]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or not self.game_goes_on:
            self.time = 0
        return np.array([self.time], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return np.array([self.time], np.float32), float(self.time), self.time in self.ends, False, {}


class Indifferent:
    """Notes how it is asked."""

    description = {"frame_stack": 2}  # noqa: RUF012

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def act(self, frames: np.ndarray, **options: Any) -> Any:
        self.asked.append(options)
        return type("Result", (), {"action": np.zeros(len(frames), np.int64)})


def played(policy: Any, count: int = 512, seed: int = 0, max_game_steps: int = 3000) -> Played:
    settings: dict[str, Any] = {"unroll_steps": 5, "reach": 15, "temperature": 0.25}
    rng = np.random.default_rng(seed)
    return sample_positions(policy, Lives, count, **settings, max_game_steps=max_game_steps, rng=rng)


@pytest.fixture(scope="module")
def found() -> Played:
    """512 positions of 64 whole games."""
    return played(Indifferent())


def test_every_step_of_a_game_is_as_likely_as_any_other(found: Played) -> None:
    assert set(found.game_lengths) == {400}
    starts = np.array([position.start for position in found.positions])
    counts = np.histogram(starts, bins=8, range=(0, 400))[0]
    # 512 draws in 8 bins: binomial, with a standard deviation of 7.5.
    assert counts == pytest.approx(64, abs=30)
    assert len({position.game for position in found.positions}) == 64


def test_a_position_ends_with_its_life_and_the_game_goes_on(found: Played) -> None:
    for position in found.positions:
        end = next(end for end in Lives.ends if end > position.start)
        left = min(15, end - position.start)
        times = np.minimum(position.start + np.arange(16), position.start + left)
        assert position.frames[:, -1, 0].tolist() == times.tolist()
        assert position.rewards.tolist() == [*range(position.start + 1, position.start + left + 1)] + [0] * (15 - left)
        assert (position.steps_left, position.terminated) == (left, position.start + left == end)
        assert len(position.states) == min(6, left)


def test_the_temperature_is_that_which_is_asked_for() -> None:
    policy = Indifferent()
    played(policy, count=3)
    assert {options["temperature"] for options in policy.asked} == {0.25}
    assert all(options["explore"] for options in policy.asked)


def test_games_without_end_are_cut_where_a_time_limit_would() -> None:
    found = played(Indifferent(), max_game_steps=60)
    assert set(found.game_lengths) == {60}
    last = max(found.positions, key=lambda position: position.start)
    assert 50 < last.start < 60
    assert (last.steps_left, last.terminated) == (60 - last.start, False)


def test_games_shorter_than_what_is_asked_for_give_what_they_have() -> None:
    found = played(Indifferent(), count=5, max_game_steps=1)
    assert len(found.positions) == 5
    assert len(played(Indifferent(), count=100, max_game_steps=1).positions) == 64
