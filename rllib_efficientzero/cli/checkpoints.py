"""Finds the checkpoints that a run starts or resumes from, and refuses those that are missing or not trusted."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from rllib_efficientzero.checkpoint.manifest import MANIFEST, CheckpointError, find_newest, read_manifest
from rllib_efficientzero.cli.console import say_warning
from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.cli.experiment import Experiment

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

TRUST = "--trust-checkpoint"
CHECKPOINT_HELP = "A checkpoint, a policy's directory, or that of a trial (its newest checkpoint) or its experiment."
Networks = Annotated[
    str | None,
    typer.Option("--networks", metavar="PATH", help="Dotted path of the class of networks that it was trained with."),
]


def one_trial(path: pathlib.Path) -> pathlib.Path:
    """Returns the directory of an experiment's only trial; returns any other directory as it is.

    Raises:
        InputError: the experiment has several trials; the message names them.
    """
    if any(path.glob("checkpoint_*")):
        return path
    trials = sorted({checkpoint.parent.name for checkpoint in path.glob("*/checkpoint_*")})
    if len(trials) > 1:
        raise InputError(f"{path} holds {len(trials)} trials; name the directory of one of them: {', '.join(trials)}")
    return path / trials[0] if trials else path


@contextmanager
def loading_explained(device: str) -> Iterator[None]:
    """Turns errors of loading a policy in the block into one sentence.

    Raises:
        InputError: there is no policy, or it is damaged, or the device or the class of its networks does not exist.
    """
    try:
        yield
    except CheckpointError as error:
        raise InputError(str(error)) from error
    except ValueError as error:
        raise InputError(str(error), "--networks") from error
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if reason.startswith("Expected one of"):
            reason = "there is no such device; write cpu or cuda"  # in place of a list of all that torch ever had
        raise InputError(f"no policy can be loaded onto {device!r}: {reason}", "--device") from error


def resolve_restore(experiment: Experiment, trusted: bool) -> None:
    """Makes `restore:` absolute; refuses one that does not exist, or that comes from elsewhere and is not trusted.

    Raises:
        InputError: with the place of the experiment.
    """
    if not experiment.restore:
        return
    where = experiment.place("restore")
    if "://" in experiment.restore:
        if not trusted:
            raise InputError(_untrusted(experiment.restore, experiment), where)
        return
    path = pathlib.Path(experiment.restore).expanduser()
    if not path.is_dir():
        raise InputError(f"there is no checkpoint directory {str(path)!r} to restore", where)
    if not (trusted or _is_inside(path, experiment)):
        raise InputError(_untrusted(str(path), experiment), where)
    experiment.restore = str(path.absolute())


def newest_checkpoints(trials: Sequence[Trial], experiment: Experiment, trusted: bool) -> dict[str, pathlib.Path]:
    """Returns trial id -> newest complete checkpoint, for trials whose checkpoints have a manifest to tell by.

    Tune's own record of a run that was killed may lack the last checkpoint, or name one that was never finished.

    Raises:
        InputError: a trial lies outside of the experiment and is not trusted, or has checkpoints but no complete one.
    """
    chosen: dict[str, pathlib.Path] = {}
    for trial in trials:
        if "://" in str(trial.path):
            continue
        directory = pathlib.Path(str(trial.path))
        for path in [directory, *([pathlib.Path(trial.checkpoint.path)] if trial.checkpoint else [])]:
            if path.exists() and not (trusted or _is_inside(path, experiment)):
                raise InputError(_untrusted(str(path), experiment))
        written = list(directory.glob(f"checkpoint_*/{MANIFEST}"))
        if not written:
            continue
        newest = find_newest(directory, warn=say_warning)
        if newest is None:
            raise InputError(
                f"none of the {len(written)} checkpoints in {directory} is whole; delete them, or the experiment, to "
                "begin anew"
            )
        chosen[trial.trial_id] = newest
    return chosen


def use_checkpoint(trial: Trial, path: pathlib.Path) -> None:
    """Makes a trial that is about to start restore the checkpoint at `path`."""
    from ray.train._internal.session import _TrainingResult
    from ray.tune import Checkpoint

    manager = trial.run_metadata.checkpoint_manager
    known = {pathlib.Path(result.checkpoint.path): result for result in manager._checkpoint_results}
    if path not in known:
        counters = read_manifest(path).get("counters", {})
        checkpoint = Checkpoint(str(path), trial.storage.storage_filesystem)
        manager.register_checkpoint(_TrainingResult(checkpoint=checkpoint, metrics=dict(counters)))
        return
    manager._latest_checkpoint_result = known[path]


def check_nothing_is_lost(experiment: Experiment) -> None:
    """Refuses to start afresh where Tune's record of a run cannot be read although it has complete checkpoints.

    Raises:
        InputError: with what to do.
    """
    if "://" in str(experiment.path):
        return
    directories = sorted({path.parent for path in pathlib.Path(experiment.path).glob("*/checkpoint_*")})
    for directory in reversed(directories):
        newest = find_newest(directory, warn=say_warning)
        if newest is not None:
            raise InputError(
                f"Tune's record of the run in {experiment.path} cannot be read, so that it cannot be resumed; begin "
                f"another run from its newest checkpoint with `restore: {newest}` and without --resume",
                experiment.where,
            )


def _is_inside(path: pathlib.Path, experiment: Experiment) -> bool:
    """Whether a path lies in the experiment's directory, links followed."""
    if "://" in str(experiment.path):
        return False
    return path.resolve().is_relative_to(pathlib.Path(experiment.path).resolve())


def _untrusted(path: str, experiment: Experiment) -> str:
    return (
        f"{path} is not in the experiment's own directory {experiment.path}. RLlib's checkpoints are pickles, which "
        f"run code when they are loaded; if you trust this one, add {TRUST}"
    )
