"""The configuration: the paper's values, what is refused, and how it travels."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import pytest

from rllib_efficientzero import EfficientZero, EfficientZeroConfig
from rllib_efficientzero.env.atari import AtariProtocol
from rllib_efficientzero.models import ModelConfig
from rllib_efficientzero.schedules import warmup_step_decay
from rllib_efficientzero.targets.reanalyze import ReanalyzeConfig

PONG = "ale_py:ALE/Pong-v5"


def cartpole(**training: Any) -> EfficientZeroConfig:
    return EfficientZeroConfig().environment("CartPole-v1").training(**training)


# --- The paper's table -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paper() -> EfficientZeroConfig:
    config = EfficientZeroConfig().environment(PONG).evaluation(evaluation_interval=1)
    config.validate()
    return config


TABLE_6: dict[str, tuple[Any, Any]] = {
    # setting of the table: (its value, where the resolved config has it)
    "Frames stacked": (4, lambda c: c.frame_stack),
    "Discount factor": (0.997**4, lambda c: c.gamma),
    "Discount factor of the search": (0.997**4, lambda c: c.search_config().discount),
    "Minibatch size": (256, lambda c: c.train_batch_size_per_learner),
    "Optimizer": ("sgd", lambda c: c.optimizer["type"]),
    "Learning rate": (0.2, lambda c: c.lr),
    "Momentum": (0.9, lambda c: c.optimizer["momentum"]),
    "Weight decay": (1e-4, lambda c: c.optimizer["weight_decay"]),
    "Max gradient norm": (5.0, lambda c: c.grad_clip),
    "Gradient clipping by": ("global_norm", lambda c: c.grad_clip_by),
    "Priority exponent": (0.6, lambda c: c.replay_buffer_config["alpha"]),
    "Priority correction": ((0.4, 1.0), lambda c: tuple(c.replay_buffer_config["beta"])),
    "Training steps": (120_000, lambda c: c.updates_at_end()),
    "Environment steps": (100_000, lambda c: c.total_env_steps),
    "Updates per environment step": (1.0, lambda c: c.replay_ratio),
    "Evaluation episodes": (32, lambda c: c.evaluation_duration),
    "Evaluation unit": ("episodes", lambda c: c.evaluation_duration_unit),
    "Min replay size for sampling": (2_000, lambda c: c.num_steps_sampled_before_learning_starts),
    "Self-play network updating interval": (100, lambda c: c.self_play_update_freq),
    "Target network updating interval": (200, lambda c: c.target_network_update_freq),
    "Unroll steps": (5, lambda c: c.unroll_steps),
    "TD steps": (5, lambda c: c.td_steps),
    "Policy loss coefficient": (1.0, lambda c: c.loss_coefficients()["policy"]),
    "Value loss coefficient": (0.25, lambda c: c.loss_coefficients()["value"]),
    "Value prefix loss coefficient": (1.0, lambda c: c.loss_coefficients()["value_prefix"]),
    "Consistency loss coefficient": (2.0, lambda c: c.loss_coefficients()["consistency"]),
    "LSTM horizon": (5, lambda c: c.search_config().value_prefix_horizon),
    "Dirichlet alpha": (0.3, lambda c: c.search_config().dirichlet_alpha),
    "Dirichlet noise fraction": (0.25, lambda c: c.search_config().root_noise_fraction),
    "Simulations": (50, lambda c: c.search_config().num_simulations),
    "Search": ("puct", lambda c: c.search_config().policy),
    "Reanalyzed policy ratio": (0.99, lambda c: c.reanalyze_config().reanalyze_ratio),
    "Value target": ("network", lambda c: c.reanalyze_config().value_target),
    "Steps of age per step of horizon": (30_000.0, lambda c: c.reanalyze_config().horizon_decay_steps),
    "Temperatures": ([(0, 1.0), (50_000, 0.5), (75_000, 0.25)], lambda c: c.temperature_schedule),
    "pb_c_init": (1.25, lambda c: c.search_config().pb_c_init),
    "pb_c_base": (19652.0, lambda c: c.search_config().pb_c_base),
    "Least range of values": (0.01, lambda c: c.search_config().value_delta_max),
    "Replay capacity": (1_000_000, lambda c: c.replay_buffer_config["capacity"]),
    "Parallel environments": (4, lambda c: c.num_envs_per_env_runner),
}


@pytest.mark.parametrize("setting", TABLE_6)
def test_the_default_is_table_6(paper: EfficientZeroConfig, setting: str) -> None:
    expected, read = TABLE_6[setting]
    value = read(paper)
    assert value == pytest.approx(expected) if isinstance(expected, float) else value == expected


@pytest.mark.parametrize(("update", "rate"), [(1_000, 0.2), (100_999, 0.2), (101_000, 0.02), (119_999, 0.02)])
def test_the_learning_rate_falls_from_0_2_to_0_02(paper: EfficientZeroConfig, update: int, rate: float) -> None:
    found = warmup_step_decay(
        update,
        paper.lr,
        warmup_updates=paper.lr_warmup_updates,
        decay_rate=paper.lr_decay_rate,
        decay_updates=paper.lr_decay_updates,
    )
    assert found == pytest.approx(rate)


def test_the_environment_is_table_6(paper: EfficientZeroConfig) -> None:
    training = AtariProtocol.from_config({"game": paper.env, **paper.env_config})
    assert tuple(training.describe()["observation_shape"]) == (96, 96, 3)
    assert training.max_frames == 108_000
    assert (training.frame_skip, training.clip_rewards, training.terminal_on_life_loss) == (4, True, True)


def test_plain_defaults_of_the_parts_are_the_papers_too(paper: EfficientZeroConfig) -> None:
    assert paper.reanalyze_config() == ReanalyzeConfig()
    assert ModelConfig.from_dict({}) == ModelConfig()


# --- Training and evaluation on Atari --------------------------------------------------------------------------------


def protocols(config: EfficientZeroConfig) -> tuple[AtariProtocol, AtariProtocol]:
    evaluation = config.get_evaluation_config_object()
    assert evaluation is not None
    return tuple(AtariProtocol.from_config({"game": c.env, **c.env_config}) for c in (config, evaluation))  # type: ignore[return-value]


def test_evaluation_has_full_lives_and_raw_rewards_and_training_has_neither(paper: EfficientZeroConfig) -> None:
    training, evaluation = protocols(paper)
    assert (training.terminal_on_life_loss, training.clip_rewards) == (True, True)
    assert (evaluation.terminal_on_life_loss, evaluation.clip_rewards) == (False, False)
    equal = {"terminal_on_life_loss": False, "clip_rewards": False}
    assert dataclasses.replace(training, **equal) == dataclasses.replace(evaluation, **equal)
    described = paper.describe_protocol()
    assert described["training"] == training.describe()
    assert described["evaluation"] == evaluation.describe()


def test_evaluation_follows_what_training_says_of_the_game() -> None:
    config = EfficientZeroConfig().environment(PONG, env_config={"frame_skip": 2, "clip_rewards": False})
    config = config.evaluation(evaluation_interval=1)
    training, evaluation = protocols(config)
    assert (training.frame_skip, evaluation.frame_skip) == (2, 2)
    assert (training.clip_rewards, evaluation.terminal_on_life_loss) == (False, False)


def test_evaluation_config_has_the_last_word() -> None:
    config = EfficientZeroConfig().environment(PONG)
    config = config.evaluation(evaluation_interval=1, evaluation_config={"env_config": {"clip_rewards": True}})
    _, evaluation = protocols(config)
    assert (evaluation.clip_rewards, evaluation.terminal_on_life_loss) == (True, False)


def test_evaluation_does_not_explore(paper: EfficientZeroConfig) -> None:
    evaluation = paper.get_evaluation_config_object()
    assert evaluation is not None
    assert evaluation.explore is False
    assert paper.explore is True


def test_other_environments_are_left_alone() -> None:
    config = cartpole().evaluation(evaluation_interval=1)
    evaluation = config.get_evaluation_config_object()
    assert evaluation is not None
    assert evaluation.env_config == config.env_config == {}
    assert "training" not in config.describe_protocol()


def test_what_an_evaluation_lasts_is_told_in_its_unit() -> None:
    config = cartpole().evaluation(evaluation_interval=1, evaluation_duration=50)
    assert config.describe_protocol()["evaluation_episodes"] == 50
    config.evaluation(evaluation_duration_unit="timesteps")
    described = config.describe_protocol()
    assert (described["evaluation_timesteps"], "evaluation_episodes" in described) == (50, False)


# --- Switches --------------------------------------------------------------------------------------------------------


def test_each_switch_changes_its_own_part_only() -> None:
    full = cartpole()
    without = cartpole(use_value_prefix=False)
    assert dataclasses.replace(full.search_config(), value_prefix_horizon=1) == without.search_config()
    assert without.loss_coefficients() == full.loss_coefficients()

    without = cartpole(use_off_policy_correction=False)
    assert without.reanalyze_config() == dataclasses.replace(full.reanalyze_config(), horizon_decay_steps=math.inf)

    without = cartpole(use_consistency=False)
    assert without.reanalyze_config() == full.reanalyze_config()
    assert set(full.loss_coefficients()) - set(without.loss_coefficients()) == {"consistency"}
    assert without.use_augmentation is True
    assert cartpole(use_augmentation=False).use_consistency is True


def test_what_a_module_needs_travels_in_its_model_config() -> None:
    config = cartpole(num_simulations=7, use_value_prefix=False, use_consistency=False)
    config = config.rl_module(model_config={"latent_size": 16})
    included = config.model_config["efficientzero"]
    assert included["search"]["num_simulations"] == 7
    assert included["search"]["value_prefix_horizon"] == 1
    assert included["use_consistency"] is False
    assert config.model_config["latent_size"] == 16


@pytest.mark.parametrize(("total_updates", "ratio", "expected"), [(None, 0.5, 50), (200, 0.5, 200), (None, 2.0, 200)])
def test_updates_at_the_end(total_updates: int | None, ratio: float, expected: int) -> None:
    config = cartpole(total_env_steps=100, total_updates=total_updates, replay_ratio=ratio)
    assert config.updates_at_end() == expected


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("search", "alpha"),
        ("value_target", "td"),
        ("first_visit", "last"),
        ("num_simulations", 0),
        ("num_simulations", 2.5),
        ("num_simulations", True),
        ("unroll_steps", 0),
        ("td_steps", -1),
        ("lstm_horizon", 0),
        ("frame_stack", "four"),
        ("total_env_steps", 0),
        ("total_updates", -1),
        ("total_updates", 1.5),
        ("mixed_start_updates", -1),
        ("mixed_recent_steps", -1),
        ("num_steps_sampled_before_learning_starts", "many"),
        ("num_steps_sampled_before_learning_starts", 255),
        ("target_network_update_freq", 0),
        ("self_play_update_freq", 0),
        ("max_consecutive_non_finite_updates", 0),
        ("search_batch_size", 0),
        ("lr_decay_updates", 0),
        ("gamma", 1.5),
        ("gamma", -0.1),
        ("gamma", math.nan),
        ("reanalyze_ratio", 1.01),
        ("root_noise_fraction", -0.5),
        ("dirichlet_alpha", 0.0),
        ("off_policy_tau", 0.0),
        ("replay_ratio", -1.0),
        ("replay_ratio", math.inf),
        ("consistency_loss_coeff", -1.0),
        ("lr", -0.1),
        ("lr", "fast"),
        ("lr", [[0, 0.1], [1000, 0.01]]),
        ("lr_warmup_updates", -1),
        ("lr_decay_rate", 2.0),
        ("grad_clip", -5.0),
        ("grad_clip_by", "value"),
        ("use_consistency", "yes"),
        ("use_value_prefix", 2),
        ("optimizer", {"type": "rmsprop"}),
        ("optimizer", {"momentum": 0.9}),
        ("optimizer", {"type": "sgd", "beta": 1}),
        ("optimizer", None),
        ("optimizer", "sgd"),
        ("temperature_schedule", []),
        ("temperature_schedule", [(5, 1.0)]),
        ("temperature_schedule", [(0, 1.0), (10, 0.5), (5, 0.25)]),
        ("temperature_schedule", [(0, -1.0)]),
        ("temperature_schedule", [0, 1.0]),
        ("temperature_schedule", 0.5),
        ("replay_buffer_config", {"size": 100}),
        ("replay_buffer_config", {"capacity": 0}),
        ("replay_buffer_config", {"alpha": -1.0}),
        ("replay_buffer_config", {"beta": [0.4]}),
        ("replay_buffer_config", {"gpu_cache_gb": -1}),
        ("replay_buffer_config", {"gpu_cache_gb": "all"}),
        ("replay_buffer_config", {"beta": "high"}),
        ("model_config", {"latent": 3}),
        ("model_config", {"latent_size": 0}),
    ],
)
def test_bad_values_are_refused_in_a_sentence_that_names_them(key: str, value: Any) -> None:
    config = cartpole()
    if key == "model_config":
        config.rl_module(model_config=value)
    else:
        config.training(**{key: value})
    with pytest.raises(ValueError, match=key):
        config.validate()


def test_two_players_are_refused() -> None:
    config = cartpole().multi_agent(policies={"a", "b"}, policy_mapping_fn=lambda agent_id, episode: "a")
    with pytest.raises(ValueError, match="single-agent"):
        config.validate()


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"gamma": 1.0, "replay_ratio": 0.25, "reanalyze_ratio": 0.0, "grad_clip": None},
        {"search": "gumbel", "value_target": "mixed", "num_simulations": 16, "first_visit": "prior"},
        {"optimizer": {"type": "adam", "eps": 1e-5}, "lr_warmup_updates": 0, "total_updates": None},
        {"temperature_schedule": [[0, 1.0], [100, 0]], "replay_buffer_config": {"beta": 1.0, "alpha": 0}},
    ],
)
def test_good_values_pass(training: dict[str, Any]) -> None:
    cartpole(**training).validate()


# --- How it travels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ({"num_simulation": 3}, "num_simulations"),
        ({"env_runners": {"num_env_runner": 3}}, "num_env_runners"),
        ({"training": {"unrol_steps": 3}}, "unroll_steps"),
    ],
)
def test_unknown_keys_name_the_nearest(given: dict[str, Any], nearest: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        EfficientZeroConfig().update_from_dict(given)


def test_wrong_types_are_refused() -> None:
    with pytest.raises(ValueError, match="num_simulations"):
        EfficientZeroConfig().update_from_dict({"num_simulations": "many"})


def test_groups_and_flat_keys_are_routed() -> None:
    config = EfficientZeroConfig().update_from_dict(
        {
            "env": "CartPole-v1",
            "env_runners": {"num_env_runners": 2, "num_envs_per_env_runner": 3},
            "training": {"num_simulations": 9, "lr": 0.01, "replay_buffer_config": {"capacity": 5_000}},
            "evaluation": {"evaluation_interval": 7},
            "rl_module": {"model_config": {"latent_size": 16}},
            "unroll_steps": 3,
        }
    )
    assert (config.env, config.num_env_runners, config.num_envs_per_env_runner) == ("CartPole-v1", 2, 3)
    assert (config.num_simulations, config.lr, config.unroll_steps) == (9, 0.01, 3)
    assert (config.evaluation_interval, config.model_config["latent_size"]) == (7, 16)
    assert config.replay_buffer_config["capacity"] == 5_000
    config.validate()


def test_a_partial_replay_config_keeps_the_other_defaults() -> None:
    """By `training` as by `update_from_dict`."""
    expected = EfficientZeroConfig().replay_buffer_config | {"capacity": 5_000}
    assert cartpole(replay_buffer_config={"capacity": 5_000}).replay_buffer_config == expected
    for given in (
        {"replay_buffer_config": {"capacity": 5_000}},
        {"training": {"replay_buffer_config": {"capacity": 5_000}}},
    ):
        assert EfficientZeroConfig().update_from_dict(given).replay_buffer_config == expected


def test_configs_do_not_share_their_defaults() -> None:
    first, second = EfficientZeroConfig(), EfficientZeroConfig()
    first.replay_buffer_config["capacity"] = 1
    first.optimizer["momentum"] = 0.0
    first.temperature_schedule.clear()
    assert second.replay_buffer_config["capacity"] == 1_000_000
    assert second.optimizer["momentum"] == 0.9
    assert len(second.temperature_schedule) == 3


@pytest.mark.parametrize("validated", [False, True])
def test_a_config_survives_its_dict(validated: bool) -> None:
    config = cartpole(num_simulations=9, search="gumbel", optimizer={"type": "adam"}, total_updates=None)
    config = config.rl_module(model_config={"latent_size": 16}).evaluation(evaluation_interval=3)
    if validated:
        config.validate()
    again = EfficientZeroConfig().update_from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    again.validate()


def test_a_config_survives_copies_and_pickles() -> None:
    config = cartpole(num_simulations=9)
    config.validate()
    config.freeze()
    for again in (config.copy(copy_frozen=False), pickle.loads(pickle.dumps(config))):
        assert again.to_dict() == config.to_dict()
        assert isinstance(again, EfficientZeroConfig)
        assert again.algo_class is EfficientZero


def test_the_algorithm_gives_this_config() -> None:
    config = EfficientZero.get_default_config()
    assert isinstance(config, EfficientZeroConfig)
    assert config.algo_class is EfficientZero
    assert EfficientZeroConfig().algo_class is EfficientZero
