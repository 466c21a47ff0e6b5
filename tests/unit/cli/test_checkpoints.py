"""Which checkpoints may be loaded, before anything of them is."""

from __future__ import annotations

import pathlib
import types
from typing import Any

import pytest
from policy_helpers import write_tiny_policy

from rllib_efficientzero.checkpoint.manifest import write_manifest
from rllib_efficientzero.cli.checkpoints import check_nothing_is_lost, newest_checkpoints, resolve_restore
from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.cli.experiment import Experiment


@pytest.fixture
def experiment(tmp_path: pathlib.Path) -> Experiment:
    return Experiment("pong", "EfficientZero", {}, storage_path=str(tmp_path / "results"), where="pong.yaml:1")


def write_checkpoint(path: pathlib.Path) -> pathlib.Path:
    write_tiny_policy(path / "policy")
    write_manifest(path, {}, counters={"training_iteration": 3})
    return path


def trial_of(experiment: Experiment, name: str = "trial", checkpoint: pathlib.Path | None = None) -> Any:
    path = None if checkpoint is None else types.SimpleNamespace(path=str(checkpoint))
    return types.SimpleNamespace(trial_id="1", path=str(pathlib.Path(experiment.path) / name), checkpoint=path)


@pytest.mark.parametrize("where", ["inside", "elsewhere", "link to elsewhere"])
def test_restore(experiment: Experiment, tmp_path: pathlib.Path, where: str) -> None:
    inside = pathlib.Path(experiment.path) / "trial" / "checkpoint_000000"
    elsewhere = tmp_path / "elsewhere"
    write_checkpoint(inside if where == "inside" else elsewhere)
    if where == "link to elsewhere":
        inside.parent.mkdir(parents=True)
        inside.symlink_to(elsewhere)
    experiment.restore = str(elsewhere if where == "elsewhere" else inside)
    if where == "inside":
        resolve_restore(experiment, trusted=False)
    else:
        with pytest.raises(InputError, match="add --trust-checkpoint"):
            resolve_restore(experiment, trusted=False)
    resolve_restore(experiment, trusted=True)


def test_restore_of_nothing_and_from_afar(experiment: Experiment) -> None:
    experiment.restore = "no/such/directory"
    with pytest.raises(InputError, match="there is no checkpoint directory 'no/such/directory' to restore"):
        resolve_restore(experiment, trusted=True)
    experiment.restore = "s3://bucket/checkpoint"
    with pytest.raises(InputError, match="add --trust-checkpoint"):
        resolve_restore(experiment, trusted=False)
    resolve_restore(experiment, trusted=True)


def test_a_relative_restore_is_made_absolute(
    experiment: Experiment, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    experiment.restore = "saved"
    resolve_restore(experiment, trusted=True)
    assert experiment.restore == str(tmp_path / "saved")


def test_newest_of_each_trial(experiment: Experiment, tmp_path: pathlib.Path) -> None:
    directory = pathlib.Path(experiment.path) / "trial"
    for i in range(3):
        write_checkpoint(directory / f"checkpoint_{i:06d}")
    (directory / "checkpoint_000002" / "policy" / "policy.json").unlink()
    noted = trial_of(experiment, checkpoint=directory / "checkpoint_000002")
    assert newest_checkpoints([noted], experiment, trusted=False) == {"1": directory / "checkpoint_000001"}
    # An algorithm without manifests, and a trial that saved nothing, are Tune's affair.
    (pathlib.Path(experiment.path) / "ppo" / "checkpoint_000000").mkdir(parents=True)
    others = [trial_of(experiment, "ppo"), trial_of(experiment, "nothing")]
    assert newest_checkpoints(others, experiment, trusted=False) == {}
    foreign = trial_of(experiment, "nothing", checkpoint=write_checkpoint(tmp_path / "elsewhere"))
    with pytest.raises(InputError, match="add --trust-checkpoint"):
        newest_checkpoints([foreign], experiment, trusted=False)


def test_no_whole_one_is_no_new_beginning(experiment: Experiment) -> None:
    """A run that had checkpoints must not silently begin with random weights."""
    directory = pathlib.Path(experiment.path) / "trial"
    for i in range(2):
        write_checkpoint(directory / f"checkpoint_{i:06d}")
        (directory / f"checkpoint_{i:06d}" / "policy" / "policy.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the 2 checkpoints in .* is whole"):
        newest_checkpoints([trial_of(experiment)], experiment, trusted=False)


def test_a_record_that_cannot_be_read_is_no_new_beginning(experiment: Experiment) -> None:
    check_nothing_is_lost(experiment)
    newest = write_checkpoint(pathlib.Path(experiment.path) / "trial" / "checkpoint_000004")
    with pytest.raises(InputError, match=f"restore: {newest}"):
        check_nothing_is_lost(experiment)
