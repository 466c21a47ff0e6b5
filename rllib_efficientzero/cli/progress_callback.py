"""A Tune callback that shows progress: one live table on a terminal, one plain line per report everywhere else."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from rich.live import Live
from rich.table import Table

from rllib_efficientzero.cli.checkpoints import use_checkpoint
from rllib_efficientzero.cli.console import out, say
from rllib_efficientzero.cli.progress import TrialProgress


class ProgressCallback(Callback):
    """Shows progress and remembers the trials for the report at the end.

    Tune pickles its callbacks with the run; only the constructor's arguments survive that, except `begin_with`.
    """

    def __init__(
        self,
        name: str,
        criteria: Mapping[str, float],
        budget: Mapping[str, float] | None = None,
        live: bool = False,
        checkpoint: Mapping[str, Any] | None = None,
        begin_with: Mapping[str, pathlib.Path] | None = None,
    ) -> None:
        """Args:
        name: The experiment's name.
        criteria: Stop criteria.
        budget: Metric -> its value at the end of a run, if that is known.
        live: Draw a table that is redrawn in place.
        checkpoint: Checkpoint settings (arguments of `CheckpointConfig`).
        begin_with: Trial id -> the checkpoint that a resumed trial goes on from.
        """
        self.begin_with = dict(begin_with or {})
        self.settings = (name, dict(criteria), dict(budget or {}), live, dict(checkpoint or {}))
        self.trials: list[Trial] = []
        self.unfinished: list[Trial] = []
        """Trials that were not finished after the last step; Tune marks those of an interrupted run as terminated."""
        self.progress: dict[str, TrialProgress] = {}
        self.rows: dict[str, dict[str, str]] = {}
        self.table: Live | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*state["settings"])  # type: ignore[misc]

    @property
    def live(self) -> bool:
        """Whether a table is drawn in place."""
        return bool(self.settings[3])

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self.trials = list(trials)
        self.unfinished = [trial for trial in trials if not trial.is_finished()]

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        # A resumed trial comes with the criteria and checkpoint settings it was saved with; today's take their place.
        trial.stopping_criterion = dict(self.settings[1])
        settings = trial.run_metadata.checkpoint_manager.checkpoint_config
        for key, value in self.settings[4].items():
            setattr(settings, key, value)
        if trial.trial_id in self.begin_with:
            use_checkpoint(trial, self.begin_with.pop(trial.trial_id))
        trial.invalidate_json_state()
        since = f" from {trial.checkpoint.path}" if trial.checkpoint else ""
        say(f"[{self._label(trial)}] starting{since}")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        _, criteria, budget, _, _ = self.settings
        progress = self.progress.setdefault(trial.trial_id, TrialProgress(criteria, budget))
        self._show(trial, progress.update(result))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if not self.live:
            say(f"[{self._label(trial)}] failed", "red")

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the table as it stands; safe to call twice."""
        if self.table is not None:
            self.table.stop()
            self.table = None

    def _label(self, trial: Trial) -> str:
        """The experiment's name; with several trials, also which one and its searched values."""
        name = self.settings[0]
        several = len(self.trials) > 1 or trial.experiment_tag not in (None, "0")
        return f"{name}/{trial.experiment_tag or trial.trial_id}" if several else name

    def _show(self, trial: Trial, columns: dict[str, str]) -> None:
        label = self._label(trial)
        if not self.live:
            say(f"[{label}] " + "  ".join(f"{name} {text}" for name, text in columns.items()))
            return
        self.rows[label] = columns
        if self.table is None:
            self.table = Live(console=out, refresh_per_second=2)
            self.table.start()
        self.table.update(draw_table(self.rows))


def draw_table(rows: Mapping[str, Mapping[str, str]]) -> Table:
    """One row per trial; a column only if some trial has it."""
    order = list(dict.fromkeys(name for columns in rows.values() for name in columns))
    table = Table(box=None, pad_edge=False)
    table.add_column("run", style="bold")
    for name in order:
        table.add_column(name, justify="right")
    for label, columns in rows.items():
        table.add_row(label, *(columns.get(name, "") for name in order))
    return table
