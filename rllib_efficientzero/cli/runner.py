"""Runs one experiment through Tune, afresh or from where it stopped."""

from __future__ import annotations

import os
import pathlib
import signal
from dataclasses import dataclass

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.result import DONE
from ray.tune.schedulers import TrialScheduler

from rllib_efficientzero.cli.algorithms import Prepared
from rllib_efficientzero.cli.announce import budget
from rllib_efficientzero.cli.checkpoints import check_nothing_is_lost, newest_checkpoints
from rllib_efficientzero.cli.console import out, say, say_warning
from rllib_efficientzero.cli.errors import ExitCode
from rllib_efficientzero.cli.experiment import Experiment
from rllib_efficientzero.cli.loggers import make_loggers
from rllib_efficientzero.cli.progress_callback import ProgressCallback
from rllib_efficientzero.cli.schedulers import make_scheduler, tune_space
from rllib_efficientzero.cli.settings import changed_settings
from rllib_efficientzero.cli.signals import StopCallback, signals_caught
from rllib_efficientzero.cli.stopping import is_met, is_raised


@dataclass
class Outcome:
    """How an experiment ended."""

    trials: list[Trial]
    unfinished: list[Trial]
    signal: int | None = None
    """The number of the signal that ended it."""

    @property
    def was_stopped(self) -> bool:
        """Whether it ended early: by a signal, with unfinished trials, or before it had any trial."""
        return self.signal is not None or bool(self.unfinished) or not self.trials

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of the command if this were its only experiment."""
        if self.was_stopped:
            return ExitCode.TERMINATED if self.signal == signal.SIGTERM else ExitCode.INTERRUPTED
        errored = any(trial.status == Trial.ERROR for trial in self.trials)
        return ExitCode.TRIAL_ERRORED if errored else ExitCode.DONE

    def status(self, trial: Trial) -> str:
        """How a trial ended, in a word."""
        words = {Trial.TERMINATED: "done", Trial.ERROR: "failed"}
        return "interrupted" if trial in self.unfinished else words.get(trial.status, "interrupted")


def finished_before(prepared: Prepared) -> Outcome | None:
    """Returns the outcome of an earlier run if no trial of it would train further, else None; ray need not run."""
    experiment = prepared.experiment
    saved = _saved_trials(str(experiment.path))
    done = saved and all(trial.status == Trial.TERMINATED and not goes_on(trial, experiment) for trial in saved)
    return Outcome(saved, unfinished=[]) if done else None


def goes_on(trial: Trial, experiment: Experiment) -> bool:
    """Whether a saved trial that has ended is to be trained further.

    It is if it does not meet today's stop criteria: either they were raised, or it ended because the search ran out of
    time. A trial that a scheduler ended stays ended, unless the criteria were raised.
    """
    result = trial.last_result or {}
    if is_met(experiment.stop, result):
        return False
    # Tune sets "done" for trials that criteria or a scheduler ended, not for those that ran out of time.
    ended_early = experiment.search.ends_trials and result.get(DONE)
    return not ended_early or is_raised(trial.stopping_criterion, experiment.stop)


def run_experiment(prepared: Prepared, resume: bool, trusted: bool, verbosity: int) -> Outcome:
    """Trains every trial of the experiment to its end, or until Ctrl-C or SIGTERM.

    Raises:
        InputError: the run cannot be resumed, or its checkpoints are not trusted, or a logger cannot be used.
    """
    experiment = prepared.experiment
    saved = _saved_trials(str(experiment.path)) if resume else []
    if resume and not saved:
        check_nothing_is_lost(experiment)
        say(f"{experiment.name}: nothing to resume in {experiment.path}; starting afresh")
    checkpoints = newest_checkpoints(saved, experiment, trusted)
    callback = _callback(prepared, checkpoints, verbosity)
    # A trial's metric may be missing before its first episode has ended; Tune would end the run.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    with signals_caught() as stop:
        scheduler = make_scheduler(experiment.search, prepared.param_space, stop)
        loggers = make_loggers(experiment.loggers, experiment.place("loggers"), experiment.path)
        callbacks = [callback, *loggers, StopCallback(stop)]
        run = _Run(prepared, callbacks, scheduler, verbosity)
        try:
            if saved:
                _warn_of_changes(saved, prepared, checkpoints)
                _resume(run, saved)
            else:
                _start(run)
        finally:
            callback.close()
    return Outcome(callback.trials, callback.unfinished, stop.signal)


@dataclass
class _Run:
    """What both a fresh and a resumed run are started with."""

    prepared: Prepared
    callbacks: list[tune.Callback]
    scheduler: TrialScheduler
    verbosity: int


def _callback(prepared: Prepared, checkpoints: dict[str, pathlib.Path], verbosity: int) -> ProgressCallback:
    experiment = prepared.experiment
    return ProgressCallback(
        experiment.name,
        experiment.stop,
        budget=budget(prepared.config),
        live=out.is_terminal and verbosity == 0,
        checkpoint=experiment.checkpoint,
        begin_with=checkpoints,
    )


def _start(run: _Run) -> None:
    """Starts a run from the beginning, or from a `restore:` checkpoint."""
    prepared = run.prepared
    experiment = prepared.experiment
    tuner = tune.Tuner(
        prepared.algorithm,
        param_space=tune_space(prepared.param_space),
        tune_config=tune.TuneConfig(
            metric=experiment.search.metric,
            mode=experiment.search.mode,
            num_samples=experiment.num_samples,
            max_concurrent_trials=experiment.search.max_concurrent,
            time_budget_s=experiment.time_budget_s,
            scheduler=run.scheduler,
        ),
        run_config=tune.RunConfig(
            name=experiment.name,
            storage_path=_storage_path(prepared),
            stop=experiment.stop,
            checkpoint_config=tune.CheckpointConfig(**experiment.checkpoint),
            failure_config=tune.FailureConfig(max_failures=experiment.max_failures),
            callbacks=run.callbacks,
            verbose=run.verbosity,
        ),
        # Tuner has no public argument for a checkpoint to begin with; `tune.run`, which it calls, has.
        _tuner_kwargs={"restore": experiment.restore} if experiment.restore else None,
    )
    tuner.fit()


def _resume(run: _Run, saved: list[Trial]) -> None:
    """Resumes every saved trial from its newest checkpoint, under today's stop criteria.

    `Tuner.restore` would bring back the old callbacks, too. `tune.run`, which it calls with the same `ResumeConfig`,
    takes new ones, and ours gives each trial today's criteria. Tune resumes either all finished trials or none.
    """
    prepared = run.prepared
    experiment = prepared.experiment
    kind = tune.ResumeConfig.ResumeType
    finished = [trial for trial in saved if trial.status == Trial.TERMINATED]
    some_go_on = any(goes_on(trial, experiment) for trial in finished)
    tune.run(
        prepared.algorithm,
        name=experiment.name,
        storage_path=_storage_path(prepared),
        config=tune_space(prepared.param_space),
        stop=experiment.stop,
        metric=experiment.search.metric,
        mode=experiment.search.mode,
        max_concurrent_trials=experiment.search.max_concurrent,
        time_budget_s=experiment.time_budget_s,
        checkpoint_config=tune.CheckpointConfig(**experiment.checkpoint),
        max_failures=experiment.max_failures,
        callbacks=run.callbacks,
        scheduler=run.scheduler,
        verbose=run.verbosity,
        raise_on_failed_trial=False,
        resume_config=tune.ResumeConfig(
            finished=kind.RESUME if some_go_on else kind.SKIP, unfinished=kind.RESUME, errored=kind.RESUME
        ),
    )


def _storage_path(prepared: Prepared) -> str:
    """The directory (or URI) above the experiment's."""
    return str(prepared.experiment.path).removesuffix(f"/{prepared.experiment.name}")


def _saved_trials(path: str) -> list[Trial]:
    """The trials of an earlier run, or none."""
    if not tune.Tuner.can_restore(path):
        return []
    try:
        return list(tune.ExperimentAnalysis(path).trials)
    except ValueError:
        # The run ended before Tune had written any trial's state.
        return []


def _warn_of_changes(saved: list[Trial], prepared: Prepared, checkpoints: dict[str, pathlib.Path]) -> None:
    """Warns of settings that differ now, since a resumed trial keeps its config, and of trials without a checkpoint."""
    changed = changed_settings(prepared, [trial.config for trial in saved])
    if changed:
        say_warning(f"a resumed run keeps its config; these settings differ now and are ignored: {', '.join(changed)}")
    without = [trial.trial_id for trial in saved if trial.checkpoint is None and trial.trial_id not in checkpoints]
    if without:
        say_warning(f"no checkpoint was written by {', '.join(without)}: starting from the beginning")
