"""Settings that contradict each other, or that would be ignored, are refused before anything is built."""

from __future__ import annotations

from typing import Any

import pytest

from rllib_efficientzero import EfficientZeroConfig
from rllib_efficientzero.config_validation import WITHOUT_EFFECT, problems


def cartpole(**training: Any) -> EfficientZeroConfig:
    return EfficientZeroConfig().environment("CartPole-v1").training(**training)


# --- Budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        ({"replay_buffer_config": {"capacity": 1000}}, r"\(2000\) must be at most the `capacity`.*\(1000\)"),
        ({"total_env_steps": 200_000}, "`total_updates` must be at least the 200000 that .*, not 120000"),
        ({"replay_ratio": 2.0, "total_updates": 150_000}, "`total_updates` must be at least the 200000"),
        ({"replay_ratio": 0.29, "total_env_steps": 10_000, "total_updates": 2_899}, "at least the 2900"),
    ],
)
def test_budgets_that_contradict_each_other_are_refused(training: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        cartpole(**training).validate()


def test_learning_begins_though_the_last_steps_are_too_few_for_all_environments() -> None:
    """Four step together: of 2,002 steps the last two are never made, or three of 2,003."""
    config = cartpole(total_env_steps=2003, total_updates=None).env_runners(num_envs_per_env_runner=4)
    config.validate()
    config.env_runners(num_envs_per_env_runner=1).training(total_env_steps=2000).validate()
    config.training(total_env_steps=1999)
    with pytest.raises(ValueError, match=r"\(2000\) must be at most `total_env_steps` \(1999\)"):
        config.validate()
    config.env_runners(num_envs_per_env_runner=4).training(total_env_steps=2002)
    with pytest.raises(ValueError, match=r"\(2000\) must be at most `total_env_steps` less 3 \(1999\)"):
        config.validate()


def test_updates_are_counted_as_the_decimal_number_says() -> None:
    config = cartpole(replay_ratio=0.29, total_updates=None)
    assert [config.updates_due(steps) for steps in (99, 100, 200, 300, 10_000)] == [28, 29, 58, 87, 2900]
    assert config.training(total_env_steps=10_000).updates_at_end() == 2900


@pytest.mark.parametrize("kind", ["sample", "train"])
def test_iterations_that_would_not_end_are_refused(kind: str) -> None:
    key = f"min_{kind}_timesteps_per_iteration"
    with pytest.raises(ValueError, match=f"`{key}` must be 0, not 100.*`min_time_s_per_iteration`"):
        cartpole().reporting(**{key: 100}).validate()


def test_how_many_steps_a_sample_has_is_a_number() -> None:
    config = cartpole(total_env_steps=10_000, total_updates=None)
    config.env_runners(num_env_runners=1, rollout_fragment_length="auto", max_sample_staleness=1)
    with pytest.raises(ValueError, match="`rollout_fragment_length` must be a whole number of at least 1, not 'auto'"):
        config.validate()


# --- RLlib's settings for other algorithms ---------------------------------------------------------------------------


OTHERS: dict[str, Any] = {
    "train_batch_size": 64,
    "num_epochs": 3,
    "minibatch_size": 16,
    "batch_mode": "complete_episodes",
    "observation_filter": "MeanStdFilter",
    "clip_rewards": True,
    "output": "/tmp/steps",
    "torch_compile_learner": True,
    "num_aggregator_actors_per_learner": 1,
    "use_env_runner_state_server": True,
    "_torch_lr_scheduler_classes": [object],
    "_torch_grad_scaler_class": object,
}


def test_every_setting_without_effect_is_tried() -> None:
    assert OTHERS.keys() == WITHOUT_EFFECT.keys()


@pytest.mark.parametrize("key", OTHERS)
def test_settings_without_effect_are_refused_with_what_there_is_instead(key: str) -> None:
    config = cartpole()
    default, instead = WITHOUT_EFFECT[key]
    assert getattr(config, key) == default
    assert not list(problems(config))
    setattr(config, key, OTHERS[key])
    (sentence,) = problems(config)
    assert sentence == (
        f"`{key}` has no effect on EfficientZero and must stay {default!r}, not {OTHERS[key]!r}: {instead}."
    )
