"""Environments one after the other, in processes of their own, or as a vector of their own: the same run."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode

from rllib_efficientzero import EfficientZero, EfficientZeroConfig
from tests.integration.faults.env_faults import NETWORK, config

SMALL_IMAGES = {"channels": 4, "reduced_channels": 2, "latent_side": 4}

pytestmark = pytest.mark.usefixtures("shared_ray")


def stored(algo: EfficientZero) -> list[np.ndarray]:
    """Everything in the replay."""
    columns = ("actions", "rewards", "visit_policy", "root_value")
    return [
        np.concatenate([np.ravel(episode.column(name)) for episode in algo.local_replay_buffer._episodes.values()])
        for name in columns
    ]


def breakout(mode: str) -> EfficientZeroConfig:
    settings = {"screen_size": 16, "grayscale": True, "noop_max": 0}
    algo = config().environment("ale_py:ALE/Breakout-v5", env_config=settings)
    algo = algo.rl_module(model_config=NETWORK | SMALL_IMAGES).training(replay_ratio=0.02)
    return algo.env_runners(gym_env_vectorize_mode=mode, rollout_fragment_length=25)


def run(mode: str) -> tuple[int, list[np.ndarray]]:
    """How many steps of a short run are not stored, and those that are."""
    algo = breakout(mode).build_algo()
    for _ in range(4):
        result = algo.train()
    # Steps after lost lives count, and are not stored.
    hidden = result["num_interactions_lifetime"] - algo.local_replay_buffer.num_added
    assert hidden > 0
    assert result["num_updates_lifetime"] > 0
    answer = hidden, stored(algo)
    algo.stop()
    return answer


@pytest.fixture(scope="module")
def one_after_the_other(shared_ray: None) -> tuple[int, list[np.ndarray]]:
    return run("sync")


@pytest.mark.parametrize("mode", ["async", "vector_entry_point"])
def test_the_same_run_in_every_mode(mode: str, one_after_the_other: tuple[int, list[np.ndarray]]) -> None:
    hidden, found = run(mode)
    expected_hidden, expected = one_after_the_other
    assert hidden == expected_hidden
    for column, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(column, other)


def test_vectors_that_reset_otherwise_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = {**CartPoleVectorEnv.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
    monkeypatch.setattr(CartPoleVectorEnv, "metadata", metadata)
    algo = config().environment("CartPole-v1", env_config={})
    algo = algo.env_runners(gym_env_vectorize_mode="vector_entry_point")
    with pytest.raises(ValueError, match=r"CartPole-v1.* has autoreset_mode AutoresetMode.SAME_STEP"):
        algo.build_algo()


def test_a_vector_of_its_own_is_played() -> None:
    algo = config().environment("CartPole-v1", env_config={})
    algo = algo.env_runners(gym_env_vectorize_mode="vector_entry_point").build_algo()
    for _ in range(10):
        result = algo.train()
    assert result["num_interactions_lifetime"] == algo.local_replay_buffer.num_added > 0
    algo.stop()
