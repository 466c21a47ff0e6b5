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
from ray.tune.search.sample import Categorical, Domain, Function

from rllib_efficientzero.cli.search_settings import MUTATIONS, SearchSettings
from rllib_efficientzero.cli.signals import Stop
from rllib_efficientzero.cli.stopping import lookup
from rllib_efficientzero.search_space import GRID_SEARCH, LISTS, is_search_space

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

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        chosen = super().choose_trial_to_run(tune_controller)
        if chosen is not None or self.stop or not self._synch:
            return chosen
        waiting = [trial for trial in tune_controller.get_live_trials() if not trial.is_finished()]
        if not waiting or any(trial.status != Trial.PAUSED for trial in waiting):
            return None
        # All wait for one that has ended, or that was judged an interval late for lack of the metric: for ever.
        furthest = max(self._trial_state[trial].last_train_time for trial in waiting)
        self._next_perturbation_sync = furthest + self._perturbation_interval
        return super().choose_trial_to_run(tune_controller)


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

    Raises:
        ValueError, TypeError, AssertionError: Tune refuses a setting, or there is nothing that PBT could mutate.
    """
    given = dict(settings.scheduler_settings)
    if settings.scheduler != "fifo":
        given.setdefault("time_attr", ITERATIONS)
    if settings.scheduler == "pbt":
        given[MUTATIONS] = mutations(given.get(MUTATIONS) or param_space)
        if not given[MUTATIONS]:
            raise ValueError(f"'pbt' mutates search spaces: write one into the config, or {MUTATIONS!r}")
        _check_begun(given[MUTATIONS], param_space)
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
    return [_tuned(inner) for inner in value] if isinstance(value, list) else value


def mutations(config: Mapping[str, Any]) -> dict[str, Any]:
    """What PBT mutates of a config: its search spaces, a file's and Tune's, also those in nested mappings.

    A choice becomes a list, of which PBT takes a neighbour; it would multiply what `tune.choice` drew.
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if is_search_space(value):
            ((kind, given),) = value.items()
            found[key] = list(given) if kind in LISTS else _tuned(value)
        elif isinstance(value, Categorical):
            found[key] = list(value.categories)
        elif isinstance(value, Domain) and not isinstance(value, Function):
            # A function (`tune.sample_from`) is asked once, with the rest of the config.
            found[key] = value
        elif isinstance(value, dict) and (inner := mutations(value)):
            found[key] = inner
    return found


def _check_begun(mutated: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """What a trial's config lacks PBT draws, but only at the top, or a mapping as a whole."""
    for key, inner in mutated.items():
        if not isinstance(inner, dict) or key not in config:
            continue
        given = config[key] if isinstance(config[key], Mapping) else {}
        for name in inner:
            if name not in given:
                parent = key.removeprefix("_")
                raise ValueError(f"{MUTATIONS!r}: the config's {parent!r} must have a {name!r} for 'pbt' to begin with")
        _check_begun(inner, given)
