"""Which trials of an earlier run `--resume` trains further."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rllib_efficientzero.cli import runner
from rllib_efficientzero.cli.experiment import Experiment
from rllib_efficientzero.cli.runner import finished_before, goes_on
from rllib_efficientzero.cli.search_settings import SearchSettings
from rllib_efficientzero.cli.stopping import is_raised


def trial_that_ended(iteration: int, criteria: dict[str, float], done: bool = True) -> Any:
    result = {"training_iteration": iteration, "done": done}
    return SimpleNamespace(status="TERMINATED", last_result=result, stopping_criterion=criteria)


def experiment_with(stop: dict[str, float], scheduler: str = "fifo") -> Experiment:
    return Experiment("x", "PPO", {}, stop=stop, search=SearchSettings(scheduler))


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_what_a_scheduler_ended_stays_ended(scheduler: str) -> None:
    ended_early = trial_that_ended(3, {"training_iteration": 6})
    assert not goes_on(ended_early, experiment_with({"training_iteration": 6}, scheduler))
    assert not goes_on(ended_early, experiment_with({"training_iteration": 5}, scheduler))
    assert not goes_on(ended_early, experiment_with({"training_iteration": 6, "time_total_s": 9}, scheduler))
    assert goes_on(ended_early, experiment_with({"training_iteration": 9}, scheduler))
    assert goes_on(ended_early, experiment_with({"time_total_s": 9}, scheduler))


@pytest.mark.parametrize("scheduler", ["fifo", "pbt", "asha", "median"])
def test_a_trial_goes_on_once_its_criterion_is_raised(scheduler: str) -> None:
    finished = trial_that_ended(6, {"training_iteration": 6})
    assert not goes_on(finished, experiment_with({"training_iteration": 6}, scheduler))
    assert goes_on(finished, experiment_with({"training_iteration": 7}, scheduler))


@pytest.mark.parametrize("scheduler", ["fifo", "pbt", "asha", "median"])
def test_a_trial_goes_on_for_which_there_was_no_time(scheduler: str) -> None:
    unfinished = trial_that_ended(3, {"training_iteration": 6}, done=False)
    assert goes_on(unfinished, experiment_with({"training_iteration": 6}, scheduler))


def test_a_search_is_finished_although_its_scheduler_ended_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    criteria = {"training_iteration": 6.0}
    saved = [trial_that_ended(iteration, criteria) for iteration in (1, 3, 6)]
    monkeypatch.setattr(runner, "_saved_trials", lambda path: saved)
    asha = SimpleNamespace(experiment=experiment_with(criteria, "asha"))
    assert finished_before(asha).trials == saved
    assert finished_before(SimpleNamespace(experiment=experiment_with({"training_iteration": 7}, "asha"))) is None
    saved.append(SimpleNamespace(status="PAUSED", last_result={}, stopping_criterion=criteria))
    assert finished_before(asha) is None


@pytest.mark.parametrize(
    ("now", "raised"),
    [({"a": 1}, False), ({"a": 0.5}, False), ({"a": 2}, True), ({"a": 1, "b": 1}, False), ({"b": 1}, True)],
)
def test_criteria_are_raised_where_one_is_met_later(now: dict[str, float], raised: bool) -> None:
    assert is_raised({"a": 1}, now) is raised
