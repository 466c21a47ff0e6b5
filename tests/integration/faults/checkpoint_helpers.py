"""Tiny runs, and hashes of everything that their future depends on."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import numpy as np
import torch
from tiny_pixels import TinyPixels

from rllib_efficientzero import EfficientZero, EfficientZeroConfig
from rllib_efficientzero.env.env_runner import EfficientZeroEnvRunner

TINY_NETWORK = {
    "latent_size": 8,
    "channels": 4,
    "latent_side": 4,
    "reduced_channels": 2,
    "mlp_hidden": [8],
    "head_hidden": [8],
    "lstm_hidden": 8,
    "projector_hidden": 8,
    "projector_out": 8,
    "predictor_hidden": 8,
    "support_size": 10,
}
TINY_TRAINING = {
    "num_simulations": 3,
    "frame_stack": 2,
    "unroll_steps": 3,
    "td_steps": 3,
    "total_env_steps": 100_000,
    "total_updates": None,
    "replay_ratio": 0.2,
    "num_steps_sampled_before_learning_starts": 40,
    "train_batch_size_per_learner": 8,
    # No multiples of each other: at a checkpoint, online, target and acting weights are three different things.
    "target_network_update_freq": 10,
    "self_play_update_freq": 11,
    "optimizer": {"type": "sgd", "momentum": 0.9, "weight_decay": 1e-4},
    "lr": 0.01,
    "lr_warmup_updates": 10,
    "replay_buffer_config": {"capacity": 600},
}


def tiny_config(env: Any = TinyPixels, seed: int | None = 0, num_env_runners: int = 0) -> EfficientZeroConfig:
    """Two environments per runner, and a replay that begins to evict soon."""
    return (
        EfficientZeroConfig()
        .environment(env)
        .debugging(seed=seed, log_level="ERROR", log_sys_usage=False)  # whose thread is waited for, 0.35 s at every end
        .training(**TINY_TRAINING)
        .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=2, rollout_fragment_length=5)
        .learners(num_gpus_per_learner=0)
        .rl_module(model_config=TINY_NETWORK)
    )


def train(algo: EfficientZero, iterations: int) -> EfficientZero:
    for _ in range(iterations):
        algo.train()
    return algo


def fingerprint(algo: EfficientZero) -> dict[str, str]:
    """Part of a run -> sha256 of it. Two runs that agree in all of them have the same future."""
    learner = algo.learner_group._learner
    # Normalisation statistics are brought up to date when weights leave the learner, as they do when they are saved.
    learner.get_state(components="rl_module")
    weights = learner.module["default_policy"].state_dict()
    optimizer = learner.get_optimizers_for_module("default_policy")[0][1].state_dict()
    parts: dict[str, Any] = {
        "weights": {name: value for name, value in weights.items() if not name.startswith("target_network.")},
        "target weights": {name: value for name, value in weights.items() if name.startswith("target_network.")},
        "optimizer": optimizer,
        "replay": _replay(algo.local_replay_buffer),
        "priorities": [algo.local_replay_buffer._used_priorities(), algo.local_replay_buffer._priorities._tree._nodes],
        "counters": [algo.num_updates, algo.num_interactions, algo.iteration, learner._num_non_finite_in_a_row],
        "replay generator": algo.local_replay_buffer._rng.bit_generator.state,
        "process generators": [random.getstate(), np.random.get_state(), torch.get_rng_state()],  # noqa: NPY002
    }
    runners = {"runner": algo.env_runner_group, "evaluation runner": algo.eval_env_runner_group}
    for name, group in runners.items():
        if group is not None:
            states = group.foreach_env_runner(_runner, local_env_runner=group.num_remote_env_runners() == 0)
            parts |= {f"{name} {key}": [state[key] for state in states] for key in states[0]}
    return {name: _hash(part) for name, part in parts.items()}


def _replay(replay: Any) -> dict[str, Any]:
    episodes = [
        [number, episode.t_started, episode.terminated, episode.truncated, episode.num_live, episode.frames]
        + [episode.column(name) for name in episode.column_names]
        for number, episode in replay._episodes.items()
    ]
    # Ids are random; what matters is which episodes are still going on.
    ongoing = sorted(replay._ongoing.values())
    return {"episodes": episodes, "ongoing": ongoing, "added": replay.num_added, "first": replay._first_position}


def _runner(runner: EfficientZeroEnvRunner) -> dict[str, Any]:
    """Without what an evaluation begins anew every time."""
    state: dict[str, Any] = {"search generator": runner.module.rng.bit_generator.state}
    if runner.config.in_evaluation:
        return state
    state["weights"] = runner.module.get_state()
    state["counters"] = [runner.num_env_steps_sampled_lifetime, runner._seed, runner._needs_initial_reset]
    state["connectors"] = [runner._env_to_module.get_state(), runner._module_to_env.get_state()]
    if runner._needs_initial_reset:
        return state | {"environment generators": None, "episodes": None}
    generators = runner.env.unwrapped.get_attr("np_random")
    state["environment generators"] = [generator.bit_generator.state for generator in generators]
    state["episodes"] = [
        None if episode is None else [episode.t, list(episode.get_observations()), episode.is_done]
        for episode in runner._ongoing_episodes
    ]
    return state


def _hash(part: Any) -> str:
    digest = hashlib.sha256()
    _feed(digest, part)
    return digest.hexdigest()


def _feed(digest: Any, part: Any) -> None:
    """Hashes nested containers of arrays, tensors and plain values."""
    if isinstance(part, dict):
        for key in sorted(part, key=str):
            digest.update(repr(key).encode())
            _feed(digest, part[key])
    elif isinstance(part, list | tuple):
        digest.update(f"[{len(part)}".encode())
        for item in part:
            _feed(digest, item)
    elif isinstance(part, torch.Tensor):
        _feed(digest, part.detach().cpu().numpy())
    elif isinstance(part, np.ndarray):
        digest.update(f"{part.dtype}{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
    elif isinstance(part, bytes):
        digest.update(part)
    else:
        digest.update(json.dumps(part, default=repr).encode())


def assert_equal(found: dict[str, str], expected: dict[str, str]) -> None:
    """Names the parts that differ."""
    assert found.keys() == expected.keys()
    different = [name for name in expected if found[name] != expected[name]]
    assert different == [], different
