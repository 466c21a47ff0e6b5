"""Tune's schedulers and search spaces for what an experiment file says; every scheduler stops at signals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from rllib_efficientzero.cli.search_settings import SearchSettings
from rllib_efficientzero.cli.signals import Stop
from rllib_efficientzero.cli.stopping import lookup
from rllib_efficientzero.search_space import GRID_SEARCH, is_search_space

ITERATIONS = "training_iteration"


class _Pausing:
    """Over one of Tune's schedulers: once it is to stop, trials are paused, which saves them, and none is started."""

    stop: Stop

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if self.stop:
            return TrialScheduler.PAUSE
        if not self._can_judge(result):
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result)  # type: ignore[misc]

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if self._can_judge(result):
            super().on_trial_complete(tune_controller, trial, result)  # type: ignore[misc]

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        return None if self.stop else super().choose_trial_to_run(tune_controller)  # type: ignore[misc]

    def _can_judge(self, result: dict[str, Any]) -> bool:
        """Whether a result has the metric. It is NaN, or missing, where no episode has ended or nothing was evaluated.

        Nothing is less than NaN: a rung with one would end nobody. Where it is missing PBT would end the search.
        """
        metric = getattr(self, "metric", None)
        return metric is None or lookup(result, metric) is not None


class PausingFIFO(_Pausing, FIFOScheduler):
    """One trial after the other."""


class PausingASHA(_Pausing, ASHAScheduler):
    """Asynchronous successive halving: of those that got as far, the better part goes on."""


class PausingMedian(_Pausing, MedianStoppingRule):
    """A trial ends that is worse than the median of the others was at its time."""


class PausingPBT(_Pausing, PopulationBasedTraining):
    """Population based training: bad trials go on as copies of good ones, with other settings."""


_CLASSES: dict[str, type[Any]] = {
    "fifo": PausingFIFO,
    "asha": PausingASHA,
    "median": PausingMedian,
    "pbt": PausingPBT,
}


def make_scheduler(settings: SearchSettings, param_space: Mapping[str, Any], stop: Stop) -> TrialScheduler:
    """The scheduler of an experiment; its metric is given to Tune, which hands it on.

    Args:
        settings: of the experiment.
        param_space: its config; PBT mutates what is searched there, unless told otherwise.
        stop: tells whether a signal came.
    """
    given = dict(settings.scheduler_settings)
    if settings.scheduler != "fifo":
        given.setdefault("time_attr", ITERATIONS)
    if settings.scheduler == "pbt":
        searched = {key: value for key, value in param_space.items() if is_search_space(value)}
        given["hyperparam_mutations"] = tune_space(given.get("hyperparam_mutations") or _without_grids(searched))
    scheduler = _CLASSES[settings.scheduler](**given)
    scheduler.stop = stop
    return scheduler


def tune_space(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with Tune's objects in the place of the search spaces that a file writes."""
    return {key: _tuned(value) for key, value in config.items()}


def _tuned(value: Any) -> Any:
    if is_search_space(value):
        ((kind, given),) = value.items()
        if kind == GRID_SEARCH:
            return tune.grid_search(given)
        return tune.choice(given) if kind == "choice" else getattr(tune, kind)(*given)
    if isinstance(value, dict):
        return {key: _tuned(inner) for key, inner in value.items()}
    return value


def _without_grids(space: Mapping[str, Any]) -> dict[str, Any]:
    """PBT draws anew: from the list of a grid search, too."""
    return {key: {"choice": value[GRID_SEARCH]} if GRID_SEARCH in value else value for key, value in space.items()}
