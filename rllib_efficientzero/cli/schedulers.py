"""Makes Tune's schedulers and search spaces from an experiment's settings; every scheduler stops at signals."""

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
    """Mixin over one of Tune's schedulers: after a signal it pauses trials, which saves them, and starts none.

    It also keeps results without the metric from the scheduler.
    """

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
        """Whether a result has the metric: it is NaN or missing if no episode has ended or nothing was evaluated.

        Nothing is less than NaN, so that a rung of ASHA with one would end no trial. Without the metric, PBT would end
        the search.
        """
        metric = getattr(self, "metric", None)
        return metric is None or lookup(result, metric) is not None


class PausingFIFO(_Pausing, FIFOScheduler):
    """Starts trials in order, and ends none early."""


class PausingASHA(_Pausing, ASHAScheduler):
    """Asynchronous successive halving: at each rung, only the best of the trials that reached it go on."""


class PausingMedian(_Pausing, MedianStoppingRule):
    """Ends a trial that is worse than the median of the others at the same time."""


class PausingPBT(_Pausing, PopulationBasedTraining):
    """Population based training: bad trials continue as copies of good ones, with changed settings."""

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        chosen = super().choose_trial_to_run(tune_controller)
        if chosen is not None or self.stop or not self._synch:
            return chosen
        waiting = [trial for trial in tune_controller.get_live_trials() if not trial.is_finished()]
        if not waiting or any(trial.status != Trial.PAUSED for trial in waiting):
            return None
        # All would wait for ever, for a trial that has ended or, for lack of the metric, was judged an interval late.
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
    """Makes the scheduler of an experiment; not its metric, which is given to Tune and passed on to the scheduler.

    Args:
        settings: of the experiment.
        param_space: its config, whose search spaces PBT mutates unless `hyperparam_mutations` names others.
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
    """Returns a config in which the search spaces of a file are replaced by Tune's objects."""
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
    """Returns what PBT mutates of a config: its search spaces, a file's and Tune's, also those in nested mappings.

    A choice becomes a list, in which PBT moves to a neighbour; a value drawn by `tune.choice` it would multiply.
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if is_search_space(value):
            ((kind, given),) = value.items()
            found[key] = list(given) if kind in LISTS else _tuned(value)
        elif isinstance(value, Categorical):
            found[key] = list(value.categories)
        elif isinstance(value, Domain) and not isinstance(value, Function):
            # Not `tune.sample_from`, whose function is called once, with the rest of the config.
            found[key] = value
        elif isinstance(value, dict) and (inner := mutations(value)):
            found[key] = inner
    return found


def _check_begun(mutated: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuses mutations of inner keys that the config lacks: PBT draws what is missing only for top-level keys."""
    for key, inner in mutated.items():
        if not isinstance(inner, dict) or key not in config:
            continue
        given = config[key] if isinstance(config[key], Mapping) else {}
        for name in inner:
            if name not in given:
                parent = key.removeprefix("_")
                raise ValueError(f"{MUTATIONS!r}: the config's {parent!r} must have a {name!r} for 'pbt' to begin with")
        _check_begun(inner, given)
