"""For tests of runs in several processes: tiny configs, and the way to start Ray for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rllib_efficientzero import EfficientZero, EfficientZeroConfig

NETWORK = {
    "latent_size": 8,
    "mlp_hidden": [8],
    "head_hidden": [8],
    "lstm_hidden": 8,
    "projector_hidden": 8,
    "projector_out": 8,
    "predictor_hidden": 4,
    "support_size": 20,
}


def tiny_config(**training: Any) -> EfficientZeroConfig:
    """CartPole; 4 environments in fragments of 8 steps, learning from the 32nd step on, an update every 4 steps."""
    settings: dict[str, Any] = {
        "num_simulations": 2,
        "frame_stack": 2,
        "total_env_steps": 100_000,
        "total_updates": None,
        "replay_ratio": 0.25,
        "num_steps_sampled_before_learning_starts": 32,
        "train_batch_size_per_learner": 16,
        "target_network_update_freq": 5,
        "self_play_update_freq": 5,
        "lr": 0.02,
        "lr_warmup_updates": 0,
    }
    return (
        EfficientZeroConfig()
        .environment("CartPole-v1")
        .debugging(seed=0, log_level="ERROR", log_sys_usage=False)  # whose thread is waited for, 0.35 s at every end
        .training(**(settings | training))
        .env_runners(num_envs_per_env_runner=4, rollout_fragment_length=8)
        .learners(num_gpus_per_learner=0)
        .rl_module(model_config=NETWORK)
    )


def train_until(algo: EfficientZero, is_reached: Callable[[dict[str, Any]], bool], timeout_s: float = 120.0) -> dict:
    """Trains until a result says that something is reached; that result."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        result = algo.train()
        if is_reached(result):
            return result
    told = {key: result.get(key) for key in ("num_updates_lifetime", "reanalyze", "fault_tolerance")}
    raise AssertionError(f"not reached within {timeout_s} s: {told}")
