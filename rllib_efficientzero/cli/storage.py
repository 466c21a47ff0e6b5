"""Checks that results can be written where they are to go, and whether an interrupted run is there already."""

from __future__ import annotations

import contextlib
import json
import pathlib
import tempfile
from typing import Any

from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.cli.experiment import Experiment
from rllib_efficientzero.cli.stopping import is_met


def check_storage(experiment: Experiment) -> None:
    """Makes the experiment's directory and writes into it, as Tune would once Ray runs; leaves nothing behind.

    Raises:
        InputError: either fails. URIs are not checked: only Tune can tell whether they can be written.
    """
    if "://" in str(experiment.path):
        return
    path = pathlib.Path(experiment.path)
    made: list[pathlib.Path] = []
    try:
        made = [directory for directory in (path, *path.parents) if not directory.exists()]
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        message = f"results cannot be written to {path}: {error.strerror or error}"
        raise InputError(message, experiment.place("storage_path")) from error
    finally:
        for directory in made:
            with contextlib.suppress(OSError):
                directory.rmdir()


def warn_of_interrupted(experiment: Experiment) -> None:
    """Warns if a run starts afresh where an interrupted one is: Tune only resumes the newest run of a directory."""
    if "://" not in str(experiment.path) and _holds_interrupted(pathlib.Path(experiment.path)):
        experiment.warnings.append(
            f"{experiment.path} holds an interrupted run; --resume goes on with it, until this one has begun"
        )


def _holds_interrupted(directory: pathlib.Path) -> bool:
    """Whether a directory holds an interrupted run, by Tune's newest record; the pickles in that are not loaded."""
    try:
        newest = max(directory.glob("experiment_state-*.json"), default=None)
        trials = json.loads(newest.read_bytes())["trial_data"] if newest else []
        return any(_is_interrupted(json.loads(trial), json.loads(metadata)) for trial, metadata in trials)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # Nothing that could be resumed, either.


def _is_interrupted(trial: dict[str, Any], metadata: dict[str, Any]) -> bool:
    """Whether a trial has begun and not come to its end."""
    result = metadata["last_result"] or {}
    if trial["status"] == "TERMINATED":
        # Tune sets "done" for trials that criteria or a scheduler ended, not for those that ran out of time.
        return not (result.get("done") or is_met(trial["stopping_criterion"], result))
    return bool(result)
