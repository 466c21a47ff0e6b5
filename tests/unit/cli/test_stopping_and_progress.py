"""Stop criteria met and translated; what the progress columns say."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rllib_efficientzero import EfficientZeroConfig
from rllib_efficientzero.cli.announce import budget
from rllib_efficientzero.cli.progress import TrialProgress, duration
from rllib_efficientzero.cli.search_settings import resolve_search
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


@pytest.mark.parametrize(
    "name", ["num_interactions_lifetime", "num_raw_env_steps_lifetime", "num_updates_lifetime", "time_this_iter_s"]
)
def test_every_metric_of_a_budget_is_a_criterion_and_a_metric(name: str) -> None:
    assert resolve_stop({name: 100}) == ({name: 100}, [])
    warnings: list[str] = []
    assert resolve_search({"metric": name}, None, warnings).metric == name
    assert warnings == []


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
        "num_interactions_lifetime": steps,
        "num_updates_lifetime": steps // 2,
        "replay_ratio": 0.5,
        "time_total_s": seconds,
        "env_runners": {"episode_return_mean": -20.5, "search": {"simulations_per_s": 12_345.6}},
        "evaluation": {"env_runners": {"episode_return_mean": -19.0}},
    }


def test_columns_of_efficientzero() -> None:
    progress = TrialProgress(
        {"training_done": 1}, {"num_interactions_lifetime": 100_000, "num_updates_lifetime": 50_000}
    )
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


def budgeted(seconds: float, interactions: int, updates: int) -> dict[str, Any]:
    """Every fifth interaction is hidden in a reset."""
    counted = {"num_interactions_lifetime": interactions, "num_updates_lifetime": updates}
    return {"time_total_s": seconds, "num_env_steps_sampled_lifetime": interactions * 4 // 5, **counted}


def test_a_budget_is_of_interactions_and_updates() -> None:
    """By default a sixth of the updates comes after the last environment step."""
    progress = TrialProgress({"training_done": 1}, budget(EfficientZeroConfig()))
    assert "left" not in progress.update(budgeted(0, 0, 0))
    last = progress.update(budgeted(1000, 100_000, 100_000))
    assert last["env steps"] == "100,000/100,000 (100%)"
    assert last["left"] == "3m20s"  # a sixth of the updates, five sixths of which took 1000 s
    assert progress.update(budgeted(1100, 100_000, 110_000))["left"] == "1m40s"
    assert progress.update(budgeted(1200, 100_000, 120_000))["left"] == "0s"


def test_steps_may_be_what_is_left_of_a_budget() -> None:
    progress = TrialProgress({}, {"num_interactions_lifetime": 100, "num_updates_lifetime": 0})
    progress.update(budgeted(10, 50, 0))
    assert progress.update(budgeted(20, 75, 0))["left"] == "10s"


def test_a_criterion_may_come_before_the_budgets_end() -> None:
    criteria = {"num_env_steps_sampled_lifetime": 1600, "training_done": 1}
    progress = TrialProgress(criteria, budget(EfficientZeroConfig()))
    progress.update(budgeted(10, 500, 500))
    assert progress.update(budgeted(20, 1000, 1000))["left"] == "20s"


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
