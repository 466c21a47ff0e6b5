"""Sampled actions through the whole loop: train, evaluate, save, load, act."""

from __future__ import annotations

import pathlib

import gymnasium as gym
import numpy as np
import pytest

from rllib_efficientzero import EfficientZero, EfficientZeroConfig
from rllib_efficientzero.policy import load_policy

NETWORK = {
    "latent_size": 16,
    "mlp_hidden": [16],
    "lstm_hidden": 8,
    "projector_hidden": 16,
    "projector_out": 16,
    "predictor_hidden": 8,
    "support_size": 20,
}

pytestmark = pytest.mark.usefixtures("shared_ray")


def tiny_config(env: str, **training: object) -> EfficientZeroConfig:
    settings: dict[str, object] = {
        "search": "gumbel",
        "num_simulations": 6,
        "num_sampled_actions": 4,
        "frame_stack": 1,
        "total_env_steps": 64,
        "total_updates": None,
        "replay_ratio": 0.5,
        "num_steps_sampled_before_learning_starts": 16,
        "train_batch_size_per_learner": 8,
        "reanalyze_ratio": 0.5,
        "optimizer": {"type": "adam"},
        "lr": 0.002,
        "unroll_steps": 2,
        "td_steps": 2,
    }
    return (
        EfficientZeroConfig()
        .environment(env)
        .debugging(seed=0, log_level="ERROR", log_sys_usage=False)  # whose thread is waited for, 0.35 s at every end
        .training(**(settings | training))
        .env_runners(num_envs_per_env_runner=2, rollout_fragment_length=8)
        .learners(num_gpus_per_learner=0)
        .rl_module(model_config=NETWORK)
    )


def train_until(algo: EfficientZero, num_updates: int) -> dict:
    """The first result after so many updates."""
    for _ in range(50):
        result = algo.train()
        if result["num_updates_lifetime"] >= num_updates:
            return result
    raise AssertionError("the run does not learn")


def is_learning(result: dict) -> bool:
    learned = result["learners"]["default_policy"]
    return bool(np.isfinite([learned["total_loss"], learned["policy_loss"], learned["entropy_loss"]]).all())


def weights_of(algo: EfficientZero) -> dict[str, np.ndarray]:
    module = algo.learner_group._learner.module["default_policy"]
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


def test_pendulum_is_trained_saved_loaded_and_evaluated(tmp_path: pathlib.Path) -> None:
    config = tiny_config("Pendulum-v1").evaluation(evaluation_interval=1000, evaluation_duration=1)
    algo = config.build_algo()
    assert is_learning(train_until(algo, 4))
    # 200 steps with at most 16.3 lost in each.
    assert -3300 < algo.evaluate()["env_runners"]["episode_return_mean"] < 0
    path = algo.save_to_path(tmp_path / "checkpoint")
    restored = EfficientZero.from_checkpoint(path)
    try:
        # Both go on with the same actions, the stored ones and those drawn from now on.
        for each in (algo, restored):
            train_until(each, 32)
        expected = weights_of(algo)
        for name, found in weights_of(restored).items():
            np.testing.assert_array_equal(found, expected[name], err_msg=name)
    finally:
        algo.stop()
        restored.stop()
    policy = load_policy(path)
    assert policy.action_space == gym.spaces.Box(-1, 1, (1,), np.float32)
    observation = np.zeros((3, 1, 3), np.float32)
    first, again = policy.act(observation), policy.act(observation)
    assert first.action.shape == (3, 1)
    np.testing.assert_array_equal(first.action, again.action)
    # Without a search: the policy's likeliest action, which is among those searched.
    np.testing.assert_allclose(policy.act(observation, num_simulations=0).action, first.candidates[:, 0], atol=1e-6)


def test_choices_by_factors_are_learned() -> None:
    algo = tiny_config("CartPole-v1", action_representation="sampled", total_env_steps=32).build_algo()
    assert is_learning(train_until(algo, 4))
    algo.stop()
