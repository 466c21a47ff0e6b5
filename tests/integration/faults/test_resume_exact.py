"""A resumed run is the run that was never stopped, bit by bit."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from checkpoint_helpers import assert_equal, fingerprint, tiny_config, train
from tiny_pixels import TinyPixels, Unsaveable

from rllib_efficientzero import EfficientZero, EfficientZeroConfig

pytestmark = pytest.mark.usefixtures("shared_ray")

BEFORE, BETWEEN, AFTER = 8, 6, 13
"""Iterations of about ten steps around the two checkpoints: after them every environment, whose episodes have 40 steps
at most, begins anew, target and acting weights are copied, and the replay evicts."""


def short_config(*args: Any, **kwargs: Any) -> EfficientZeroConfig:
    return tiny_config(*args, **kwargs).training(replay_buffer_config={"capacity": 200})


def with_evaluation() -> EfficientZeroConfig:
    return short_config().evaluation(evaluation_interval=9, evaluation_duration=2)


def in_processes() -> EfficientZeroConfig:
    return short_config().env_runners(gym_env_vectorize_mode="async")


CONFIGS = {
    "CartPole": lambda: short_config("CartPole-v1"),
    "pixels": short_config,
    "evaluation": with_evaluation,
    "environment without state": lambda: short_config(Unsaveable),
    "environments in processes": in_processes,
    "two remote runners": lambda: short_config(TinyPixels, num_env_runners=2),
    "batches made ahead": lambda: short_config().reanalyze(prefetch=2),
    "remote reanalyze actor": lambda: short_config().reanalyze(num_actors=1, prefetch=0),
    "without a seed": lambda: short_config(seed=None),
}


LONG = ("two remote runners", "remote reanalyze actor", "CartPole")
"""The first two start processes; CartPole is resumed in `test_resume_killed.py`, too."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in CONFIGS]
)
def test_resumed_equals_straight(name: str, tmp_path: pathlib.Path) -> None:
    """Both runs save at the same iterations; one of them is begun anew from the second checkpoint."""
    straight = train(CONFIGS[name]().build_algo(), BEFORE)
    straight.save_to_path(tmp_path / "checkpoint_0")
    train(straight, BETWEEN)
    saved = straight.save_to_path(tmp_path / "checkpoint_1")
    assert straight.num_updates % 10 != 0
    assert straight.num_updates % 11 != 0
    before = fingerprint(straight)
    at_checkpoint = straight.num_updates
    expected = fingerprint(train(straight, AFTER))
    evicted = straight.local_replay_buffer._first_position
    straight.stop()
    assert evicted > 0, "the test should see an eviction"
    assert straight.num_updates - at_checkpoint > 2 * 11, "and copies of the weights"

    resumed: Any = EfficientZero.from_checkpoint(saved)
    assert_equal(fingerprint(resumed), before)
    assert_equal(fingerprint(train(resumed, AFTER)), expected)
    resumed.stop()


@pytest.mark.parametrize("config", [short_config, in_processes])
def test_a_run_may_be_rolled_back(config: Callable[[], EfficientZeroConfig], tmp_path: pathlib.Path) -> None:
    """Restoring into the very algorithm that went on: newer weights must not survive."""
    algo: Any = train(config().build_algo(), 15)
    saved = algo.save_to_path(tmp_path / "checkpoint")
    expected = fingerprint(train(algo, 10))
    train(algo, 7)
    algo.restore_from_path(saved)
    assert_equal(fingerprint(train(algo, 10)), expected)
    algo.stop()


def test_saving_changes_nothing(tmp_path: pathlib.Path) -> None:
    """Where the environments' state can be saved, a run with checkpoints is the run without."""
    with_checkpoints: Any = tiny_config().build_algo()
    for i in range(3):
        train(with_checkpoints, 5)
        with_checkpoints.save_to_path(tmp_path / f"checkpoint_{i}")
    expected = fingerprint(with_checkpoints)
    with_checkpoints.stop()
    without: Any = train(tiny_config().build_algo(), 15)
    assert_equal(fingerprint(without), expected)
    without.stop()


def test_metrics_of_episodes_go_on(tmp_path: pathlib.Path) -> None:
    """Returns count the part of an episode that was played before the checkpoint."""
    # 41 steps of each environment, so that it is in another episode than its first, and 45 more.
    straight: Any = train(tiny_config().build_algo(), 10)
    saved = straight.save_to_path(tmp_path / "checkpoint")
    expected = [straight.train()["env_runners"] for _ in range(9)]
    straight.stop()
    resumed: Any = EfficientZero.from_checkpoint(saved)
    for result in expected:
        found = resumed.train()["env_runners"]
        for name in ("episode_return_mean", "episode_len_mean", "num_episodes_lifetime"):
            assert found.get(name) == pytest.approx(result.get(name), nan_ok=True)
    resumed.stop()
