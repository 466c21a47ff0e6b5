"""The paper's DMControl tasks from images, with the networks and the protocol of their examples, for a few updates."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import yaml

from rllib_efficientzero import EfficientZeroConfig
from rllib_efficientzero.env.rendering import RenderingError, choose_renderer

pytest.importorskip("dm_control")

EXAMPLES = pathlib.Path(__file__).parents[3] / "tuned_examples"
REPEATS = {"cartpole-swingup": 8, "reacher-easy": 4, "ball-in-cup-catch": 4}
EPISODE = 1000
"""Steps after which the suite stops."""
UPDATES = 4


def read(name: str) -> dict[str, Any]:
    (experiment,) = yaml.safe_load((EXAMPLES / f"dmc-{name}-ez.yaml").read_text()).values()
    return experiment


def example(name: str) -> EfficientZeroConfig:
    experiment = read(name)
    return EfficientZeroConfig().update_from_dict(experiment["config"] | {"env": experiment["env"]})


def shortened(config: EfficientZeroConfig, decisions: int) -> EfficientZeroConfig:
    """One episode at random, a few updates on small batches, some decisions of the networks learned."""
    return (
        config.debugging(log_level="ERROR")
        .training(
            num_simulations=4,
            train_batch_size_per_learner=8,
            num_steps_sampled_before_learning_starts=decisions,
            total_env_steps=decisions + 10,
            replay_ratio=UPDATES / decisions,
            self_play_update_freq=1,
        )
        .env_runners(num_envs_per_env_runner=1, rollout_fragment_length=10)
        .evaluation(evaluation_interval=None, evaluation_duration=1)
        .learners(num_gpus_per_learner=0)
    )


@pytest.mark.parametrize("name", REPEATS)
def test_the_benchmark_s_100k_steps(name: str) -> None:
    config = example(name)
    described = config.describe_protocol()
    assert described["total_raw_env_steps"] == 100_000
    assert described["total_env_steps"] * REPEATS[name] == 100_000
    played = described["training"]
    assert (played["action_repeat"], played["bins_per_dimension"], played["image_size"]) == (REPEATS[name], 5, 96)
    assert config.frame_stack == 4
    # All else is the paper's network.
    assert set(read(name)["config"]["rl_module"]["model_config"]) == {"action_encoding", "support_size"}


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize("name", REPEATS)
def test_plays_learns_and_evaluates(name: str) -> None:
    try:
        choose_renderer()
    except RenderingError as error:
        pytest.skip(str(error))
    decisions = EPISODE // REPEATS[name]
    algo = shortened(example(name), decisions).build_algo()
    try:
        result: dict[str, Any] = {"num_updates_lifetime": 0, "training_done": False}
        while not result["training_done"]:
            result = algo.train()
        assert result["num_updates_lifetime"] == UPDATES, "updates that are not finite are not counted"
        assert result["num_interactions_lifetime"] == decisions + 10
        assert result["num_raw_env_steps_lifetime"] == (decisions + 10) * REPEATS[name]
        evaluated = algo.evaluate()["env_runners"]
        assert evaluated["episode_len_mean"] == decisions
        assert 0 <= evaluated["episode_return_mean"] <= EPISODE
        windows = algo.local_replay_buffer.sample(64, beta=1.0)
        # The first episode ended by the time limit alone: what lies beyond is bootstrapped, never worth 0.
        assert (windows.steps_left < decisions).any()
        assert not windows.terminated.any()
    finally:
        algo.stop()
