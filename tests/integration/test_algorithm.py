"""The whole loop on CartPole: ratio, budget, determinism, checkpoints, evaluation, Tune."""

from __future__ import annotations

import hashlib
import json
import pathlib

import numpy as np
import pytest
import ray
import torch
from ray import tune

from rllib_efficientzero import EfficientZero, EfficientZeroConfig
from rllib_efficientzero import metrics as names

TINY_NETWORK = {
    "latent_size": 16,
    "mlp_hidden": [16],
    "lstm_hidden": 16,
    "projector_hidden": 16,
    "projector_out": 16,
    "predictor_hidden": 8,
    "support_size": 20,
}


def tiny_config(**training: object) -> EfficientZeroConfig:
    """CartPole with a tiny network: 400 steps, 100 updates."""
    settings: dict[str, object] = {
        "num_simulations": 4,
        "frame_stack": 2,
        "total_env_steps": 400,
        "total_updates": None,
        "replay_ratio": 0.25,
        "num_steps_sampled_before_learning_starts": 64,
        "train_batch_size_per_learner": 32,
        "target_network_update_freq": 20,
        "self_play_update_freq": 10,
        "optimizer": {"type": "adam"},
        "lr": 0.002,
        "lr_warmup_updates": 10,
    }
    return (
        EfficientZeroConfig()
        .environment("CartPole-v1")
        .debugging(seed=0, log_level="ERROR", log_sys_usage=False)  # whose thread is waited for, 0.35 s at every end
        .training(**(settings | training))
        .env_runners(num_envs_per_env_runner=4, rollout_fragment_length=8)
        .learners(num_gpus_per_learner=0)
        .rl_module(model_config=TINY_NETWORK)
    )


pytestmark = pytest.mark.usefixtures("shared_ray")


def train_to_end(algo: EfficientZero) -> dict:
    for _ in range(200):
        result = algo.train()
        if result["training_done"]:
            return result
    raise AssertionError("the run did not end")


def fingerprint(algo: EfficientZero) -> str:
    """A hash of the weights, the target network's included, and of the replay's order of samples to come."""
    digest = hashlib.sha256()
    module = algo.learner_group._learner.module["default_policy"]
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    digest.update(algo.local_replay_buffer.sample(16, beta=1.0).position_ids.tobytes())
    return digest.hexdigest()


def test_budget_and_replay_ratio_are_exact() -> None:
    algo = tiny_config().build_algo()
    sampled_when_learning_began = None
    while True:
        result = algo.train()
        if result["num_updates_lifetime"] and sampled_when_learning_began is None:
            sampled_when_learning_began = result["num_interactions_lifetime"]
        if result["training_done"]:
            break
        # Self-play never runs ahead of the updates that the steps so far owe, once learning has begun.
        if sampled_when_learning_began is not None:
            assert result["num_updates_lifetime"] <= 0.25 * result["num_interactions_lifetime"]
    assert 64 <= sampled_when_learning_began < 64 + 8 * 4
    assert 397 <= result["num_interactions_lifetime"] <= 400
    assert result["num_updates_lifetime"] == 100
    assert result["num_interactions_lifetime"] == algo.local_replay_buffer.num_added
    before = algo.num_updates
    algo.train()
    assert algo.num_updates == before, "a finished run must not go on learning"
    algo.stop()


def test_timers_sum_to_the_wall_clock() -> None:
    config = tiny_config(total_env_steps=1000, num_simulations=8).env_runners(rollout_fragment_length=32)
    algo = config.build_algo()
    while algo.num_updates < 20:
        algo.train()
    timed = wall = 0.0
    for _ in range(3):
        result = algo.train()
        timed += sum(result["timers"][name] for name in names.ITERATION_TIMERS)
        wall += result["time_this_iter_s"]
        assert all(result["timers"][name] > 0 for name in names.ITERATION_TIMERS)
    assert 0.95 * wall < timed < wall
    algo.stop()


def test_updates_beyond_the_replay_ratio_follow_after_the_last_step() -> None:
    algo = tiny_config(total_env_steps=200, total_updates=80).build_algo()
    result = train_to_end(algo)
    assert result["num_updates_lifetime"] == 80
    assert result["num_interactions_lifetime"] <= 200
    algo.stop()


def run(config: EfficientZeroConfig) -> str:
    algo = config.build_algo()
    train_to_end(algo)
    result = fingerprint(algo)
    algo.stop()
    return result


@pytest.fixture(scope="module")
def plain_run(shared_ray: None) -> str:
    """What comes of 200 steps with seed 0 and without an evaluation."""
    return run(tiny_config(total_env_steps=200))


def test_same_seed_same_run_and_other_seed_another(plain_run: str) -> None:
    assert run(tiny_config(total_env_steps=200)) == plain_run
    assert run(tiny_config(total_env_steps=200).debugging(seed=1)) != plain_run


def test_evaluation_does_not_disturb_training(plain_run: str) -> None:
    config = tiny_config(total_env_steps=200).evaluation(evaluation_interval=2, evaluation_duration=3)
    assert run(config) == plain_run


def test_checkpoint_restores_everything_and_goes_on(tmp_path: pathlib.Path) -> None:
    algo = tiny_config().build_algo()
    while algo.num_updates < 40:
        algo.train()
    path = algo.save_to_path(tmp_path / "checkpoint")
    saved = (algo.num_updates, algo.num_interactions, len(algo.local_replay_buffer), algo.iteration)
    before = fingerprint(algo)
    optimizer = algo.learner_group._learner.get_optimizers_for_module("default_policy")[0][1].state_dict()
    rng = algo.env_runner.module.rng.bit_generator.state
    algo.stop()

    restored = EfficientZero.from_checkpoint(path)
    counters = (restored.num_updates, restored.num_interactions)
    assert (*counters, len(restored.local_replay_buffer), restored.iteration) == saved
    assert restored.env_runner.module.rng.bit_generator.state == rng
    assert fingerprint(restored) == before
    again = restored.learner_group._learner.get_optimizers_for_module("default_policy")[0][1].state_dict()
    for key, value in optimizer["state"].items():
        for name, tensor in value.items():
            torch.testing.assert_close(again["state"][key][name], tensor, rtol=0, atol=0)
    result = train_to_end(restored)
    assert result["num_updates_lifetime"] == 100
    assert result["num_interactions_lifetime"] <= 400
    restored.stop()


def test_evaluation_plays_equally_often_in_every_environment() -> None:
    config = tiny_config().evaluation(evaluation_interval=1, evaluation_duration=6)
    algo = config.build_algo()
    result = algo.train()
    runners = result["evaluation"]["env_runners"]
    assert len(runners["episode_returns"]) == 6
    assert np.isclose(runners["episode_return_mean"], np.mean(runners["episode_returns"]))
    recorded = json.loads((algo.run_directory / "evaluation.json").read_text())
    assert recorded["evaluations"][0]["episode_returns"] == [float(r) for r in runners["episode_returns"]]
    assert recorded["protocol"]["env"] == "CartPole-v1"
    assert json.loads((algo.run_directory / "protocol.json").read_text())["versions"]["ray"] == ray.__version__
    algo.stop()


def test_nothing_is_kept_of_episodes_that_a_reset_leaves_without_an_end() -> None:
    """As evaluations by steps do, which begin anew every time."""
    config = tiny_config()
    runner = config.env_runner_cls(config=config, worker_index=0, num_workers=0)
    for _ in range(3):
        runner.sample(num_timesteps=22, force_reset=True)
        runner.get_metrics()
    assert len(runner._env_index_of) == config.num_envs_per_env_runner
    runner.stop()


def test_remote_env_runners_feed_the_same_loop() -> None:
    algo = tiny_config(total_env_steps=200).env_runners(num_env_runners=1).build_algo()
    result = train_to_end(algo)
    assert result["num_interactions_lifetime"] <= 200
    assert result["num_updates_lifetime"] == 50
    assert result["env_runners"]["search"]["simulations_per_s"] > 0
    algo.stop()


def test_tune_knows_the_algorithm_by_name(tmp_path: pathlib.Path) -> None:
    space = {
        "env": "CartPole-v1",
        "training": {"num_simulations": 2, "num_steps_sampled_before_learning_starts": 32, "total_env_steps": 64},
        "train_batch_size_per_learner": 16,
        "num_gpus_per_learner": 0,
        "replay_ratio": tune.grid_search([0.1, 0.2]),
        "model_config": TINY_NETWORK,
    }
    run_config = tune.RunConfig(storage_path=str(tmp_path), stop={"training_iteration": 2}, verbose=0)
    results = tune.Tuner("EfficientZero", param_space=space, run_config=run_config).fit()
    assert len(results) == 2
    assert not results.errors
    assert all((pathlib.Path(result.path) / "result.json").exists() for result in results)


def test_a_policy_acts_from_its_module_checkpoint_alone(tmp_path: pathlib.Path) -> None:
    from ray.rllib.core.rl_module.rl_module import RLModule

    algo = tiny_config(total_env_steps=200).build_algo()
    train_to_end(algo)
    path = algo.save_to_path(tmp_path / "checkpoint")
    module = RLModule.from_checkpoint(f"{path}/learner_group/learner/rl_module/default_policy")
    observation = torch.zeros(3, 2, 4)
    served = module.forward_inference({"obs": observation})
    trained = algo.get_module().forward_inference({"obs": observation})
    assert served["actions"].tolist() == trained["actions"].tolist()
    np.testing.assert_allclose(served["visit_policy"].sum(axis=1), 1.0, atol=1e-6)
    algo.stop()
