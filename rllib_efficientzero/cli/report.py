"""Prints what is about to run, how it ended, and the command that resumes it."""

from __future__ import annotations

import json
import math
import pathlib
import re
import shlex
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ray.tune.result import EXPR_RESULT_FILE
from rich.table import Table

from rllib_efficientzero.checkpoint.manifest import MANIFEST
from rllib_efficientzero.cli.algorithms import Prepared, total_resources
from rllib_efficientzero.cli.announce import announce, protocol
from rllib_efficientzero.cli.console import out, say, say_error, say_warning
from rllib_efficientzero.cli.progress import duration
from rllib_efficientzero.cli.runner import Outcome, goes_on
from rllib_efficientzero.cli.stopping import ENV_STEPS, EPISODE_RETURN, EVALUATION_RETURN, lookup

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from rllib_efficientzero.cli.experiment import Experiment

SECRET_OPTION = "--wandb-key"
SECRET = '"$WANDB_API_KEY"'
"""Printed in place of the key: the environment variable in which Weights & Biases itself looks for one."""


def print_start(prepared: Prepared, resume: bool) -> None:
    """Prints what is about to run, and the algorithm's notices."""
    experiment = prepared.experiment
    env = experiment.config.get("env", "offline data")
    say(f"{experiment.name}: {prepared.algorithm.__name__} on {env}", "bold")
    say(f"  results    {experiment.path}")
    amounts = ", ".join(f"{amount:g} {name}" for name, amount in total_resources(prepared.resources).items())
    say(f"  resources  {amounts} a trial")
    criteria = ", ".join(f"{name} >= {value:g}" for name, value in experiment.stop.items())
    say(f"  stops at   {criteria or 'Ctrl-C: no stop criterion is given'}")
    for name, value in protocol(prepared.config).items():
        say(f"  {name}: {value}")
    for notice in announce(prepared.config):
        say_warning(notice)
    if not experiment.checkpoint.get("checkpoint_frequency") and not resume:
        say_warning("no checkpoint before the end: a run that is killed starts over (--checkpoint-freq N changes that)")


def print_end(prepared: Prepared, outcome: Outcome, argv: Sequence[str]) -> None:
    """Prints the results, checkpoints and errors, and the command to resume; for a finished run, to look at it."""
    say("")
    out.print(_table(outcome))
    for trial in outcome.trials:
        if trial.checkpoint:
            say(f"checkpoint {trial.checkpoint.path}")
        if outcome.status(trial) == "failed":
            file = _error_file(trial)
            say_error(f"trial {trial.trial_id} failed: {what_went_wrong(file)}")
            say_error(f"the whole traceback is in {file}")
    if outcome.was_stopped:
        say_warning("interrupted")
    best = _best_checkpoint(outcome, prepared.experiment)
    if is_left_to_do(outcome, prepared.experiment):
        say(f"go on with: {resume_command(argv)}")
    elif best is not None:
        path = shlex.quote(best)
        say(f"look at it with: rllib evaluate {path} or rllib play {path}")


def is_left_to_do(outcome: Outcome, experiment: Experiment) -> bool:
    """Whether `--resume` would train any trial further; one that failed before its first result would fail again."""

    def is_left(trial: Trial) -> bool:
        if outcome.status(trial) == "done":
            return goes_on(trial, experiment)
        return bool(trial.last_result or trial.checkpoint)

    return outcome.was_stopped or any(is_left(trial) for trial in outcome.trials)


def _best_checkpoint(outcome: Outcome, experiment: Experiment) -> str | None:
    """Returns EfficientZero's checkpoint of the trial that is best by the search's metric; None if none is on disk."""

    def rank(trial: Trial) -> float:
        value = _last(trial, experiment.search.metric)
        return -math.inf if value is None else value if experiment.search.mode == "max" else -value

    written = [trial for trial in outcome.trials if trial.checkpoint]
    own = [trial for trial in written if (pathlib.Path(trial.checkpoint.path) / MANIFEST).is_file()]
    return max(own, key=rank).checkpoint.path if own else None


def resume_command(argv: Sequence[str]) -> str:
    """Returns this command with `--resume`, and with the secret key, which logs must not keep, as a shell variable."""
    words = ["rllib"]
    for before, word in pairwise(["rllib", *argv]):
        option, equals, _ = word.partition("=")
        if before == SECRET_OPTION:
            words.append(SECRET)
        elif equals and option == SECRET_OPTION:
            words.append(f"{option}={SECRET}")
        else:
            words.append(shlex.quote(word))
    return " ".join(words if "--resume" in argv else [*words, "--resume"])


def _table(outcome: Outcome) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("trial", "status", "iter", "env steps", "return", "eval return", "elapsed"):
        table.add_column(name, justify="left" if name in {"trial", "status"} else "right")
    for trial in outcome.trials:
        cells = [
            _cell(_last(trial, "training_iteration"), ",.0f"),
            _cell(_last(trial, ENV_STEPS), ",.0f"),
            _cell(_last(trial, EPISODE_RETURN), ".4g"),
            _cell(_last(trial, EVALUATION_RETURN), ".4g"),
            duration(_last(trial, "time_total_s") or 0),
        ]
        table.add_row(str(trial.experiment_tag or trial.trial_id), outcome.status(trial), *cells)
    return table


def _last(trial: Trial, metric: str) -> float | None:
    """Returns the last value of a metric that a trial reported, maybe in an earlier result: few iterations evaluate."""
    value = lookup(trial.last_result or {}, metric)
    if value is not None or not trial.last_result:
        return value
    file = pathlib.Path(trial.path or "") / EXPR_RESULT_FILE
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    values = (lookup(_parsed(line), metric) for line in reversed(lines))
    return next((found for found in values if found is not None), None)


def _parsed(line: str) -> dict[str, Any]:
    """A line of `result.json`; a run that was killed may have written one in part."""
    try:
        result = json.loads(line)
    except ValueError:
        return {}
    return result if isinstance(result, dict) else {}


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _error_file(trial: Trial) -> pathlib.Path:
    """Returns the file of a trial's traceback: beside its results, or in ray's own folder if these are elsewhere."""
    beside = pathlib.Path(trial.path or "") / (trial.run_metadata.error_filename or "")
    return beside if beside.is_file() else pathlib.Path(trial.error_file or "")


def what_went_wrong(file: pathlib.Path) -> str:
    """The exception itself, without the traceback around it."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"({error})"
    # RLlib re-raises some errors without their message; the cause stands further up.
    told = re.findall(r"^[A-Za-z_][\w.]*(?:Error|Exception): \S.*$", text, flags=re.MULTILINE)
    lost = re.search(r"^The actor died .*", text, flags=re.MULTILINE | re.DOTALL)
    if lost and not told:
        # Ray's account of a lost process: all lines but those of identifiers, which are indented.
        return " ".join(line.strip() for line in lost.group().splitlines() if not line.startswith("\t"))
    lines = told or text.strip().splitlines()
    return lines[-1] if lines else "(no message)"
