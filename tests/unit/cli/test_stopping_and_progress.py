"""Stop criteria met and translated; what the progress columns say."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rllib_efficientzero.cli.progress import TrialProgress, duration
from rllib_efficientzero.cli.stopping import is_met, lookup, resolve_stop


@pytest.mark.parametrize(
    ("result", "met"),
    [
        ({"training_iteration": 4}, False),
        ({"training_iteration": 5}, True),
        ({"env_runners": {"episode_return_mean": 20.5}}, True),
        ({"env_runners/episode_return_mean": 20.0}, True),
        ({"env_runners": {"episode_return_mean": math.nan}}, False),
        ({"env_runners": {}}, False),
        ({}, False),
    ],
)
def test_criteria_are_met_by_any_metric_that_is_there(result: dict[str, Any], met: bool) -> None:
    assert is_met({"training_iteration": 5, "env_runners/episode_return_mean": 20}, result) is met


def test_lookup_takes_numbers_only() -> None:
    assert lookup({"a": {"b": 1}}, "a/b") == 1
    assert lookup({"a": {"b": "x"}}, "a/b") is None
    assert lookup({"a": 1}, "a/b") is None


@pytest.mark.parametrize(
    "name", ["episode_reward_mean", "env_runners/episode_reward_mean", "sampler_results/episode_reward_mean"]
)
def test_old_names_of_the_return(name: str) -> None:
    stop, warnings = resolve_stop({name: "2e1"})
    assert stop == {"env_runners/episode_return_mean": 20}
    assert len(warnings) == 1


def test_nested_criteria_and_custom_metrics_pass() -> None:
    stop, warnings = resolve_stop({"env_runners": {"my_metric": 3}, "evaluation/env_runners/episode_return_mean": 1})
    assert stop == {"env_runners/my_metric": 3, "evaluation/env_runners/episode_return_mean": 1}
    assert warnings == []


def test_a_doubtful_nested_name_is_warned_of() -> None:
    stop, warnings = resolve_stop({"env_runners/episode_return_maen": 3})
    assert list(stop) == ["env_runners/episode_return_maen"]
    assert "did you mean 'env_runners/episode_return_mean'" in warnings[0]


def efficientzero_result(seconds: float, steps: int) -> dict[str, Any]:
    return {
        "training_iteration": steps // 1000,
        "num_env_steps_sampled_lifetime": steps,
        "num_updates_lifetime": steps // 2,
        "replay_ratio": 0.5,
        "time_total_s": seconds,
        "env_runners": {"episode_return_mean": -20.5, "search": {"simulations_per_s": 12_345.6}},
        "evaluation": {"env_runners": {"episode_return_mean": -19.0}},
    }


def test_columns_of_efficientzero() -> None:
    progress = TrialProgress(criteria={"training_done": 1}, budget=100_000)
    progress.update(efficientzero_result(100, 10_000))
    columns = progress.update(efficientzero_result(200, 30_000))
    assert columns == {
        "iter": "30",
        "env steps": "30,000/100,000 (30%)",
        "updates": "15,000",
        "replay ratio": "0.5",
        "return": "-20.5",
        "eval return": "-19",
        "sims/s": "12,346",
        "steps/s": "200",
        "elapsed": "3m20s",
        "left": "5m50s",  # 70 % at 20 % in 100 s
    }


def test_columns_without_metrics_are_dropped() -> None:
    progress = TrialProgress(criteria={"training_iteration": 4})
    first = progress.update({"training_iteration": 1, "time_total_s": 10.0, "num_env_steps_sampled_lifetime": 500})
    assert first == {"iter": "1", "env steps": "500", "steps/s": "50", "elapsed": "10s"}
    second = progress.update({"training_iteration": 2, "time_total_s": 20.0, "num_env_steps_sampled_lifetime": 1000})
    assert second["left"] == "20s"


def test_time_left_of_a_resumed_trial_ignores_the_time_before() -> None:
    progress = TrialProgress(criteria={"training_iteration": 12})
    progress.update({"training_iteration": 10, "time_total_s": 1000.0})
    assert progress.update({"training_iteration": 11, "time_total_s": 1005.0})["left"] == "5s"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59, "59s"), (200, "3m20s"), (7500, "2h05m"), (100_000, "1d03h")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
