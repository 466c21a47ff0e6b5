"""Which checkpoint a verb takes of the directory that it is given."""

from __future__ import annotations

import json
import pathlib

import pytest
from invoking import rllib
from policy_helpers import write_tiny_policy

from rllib_efficientzero.checkpoint.manifest import write_manifest

VERBS = (["evaluate"], ["play"], ["serve", "--local"], ["export", "out"], ["train-decoder", "decoder.safetensors"])


def write_checkpoint(path: pathlib.Path) -> pathlib.Path:
    write_tiny_policy(path / "policy", num_actions=2, env="CartPole-v1")
    write_manifest(path, {})
    return path


def test_an_experiment_of_one_trial_is_its_trial(tmp_path: pathlib.Path) -> None:
    write_checkpoint(tmp_path / "trial" / "checkpoint_000000")
    newest = write_checkpoint(tmp_path / "trial" / "checkpoint_000001")
    (tmp_path / "failed").mkdir()  # before its first checkpoint
    done = rllib("evaluate", tmp_path, "--episodes", 1, "--out", "-")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["checkpoint"] == str(newest)
    done = rllib("export", tmp_path, tmp_path / "out")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_of_several_trials_one_has_to_be_named(verb: list[str], tmp_path: pathlib.Path) -> None:
    for trial in ("b", "a"):
        write_checkpoint(tmp_path / trial / "checkpoint_000000")
    refused = rllib(verb[0], tmp_path, *verb[1:])
    assert refused.exit_code == 2
    assert f"{tmp_path} holds 2 trials; name the directory of one of them: a, b\n" in refused.stderr


@pytest.mark.parametrize("verb", VERBS[1:], ids=lambda verb: verb[0])
@pytest.mark.parametrize("below", ["", "checkpoint_000000", "trial/checkpoint_000000"])
def test_policies_of_other_algorithms_are_not_played(verb: list[str], below: str, tmp_path: pathlib.Path) -> None:
    checkpoint = tmp_path / below
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "rllib_checkpoint.json").write_text("{}")
    refused = rllib(verb[0], tmp_path, *verb[1:])
    assert refused.exit_code == 2
    assert "is of another algorithm: only policies of EfficientZero can be played, served and" in refused.stderr


def test_what_is_damaged_is_not_called_anothers(tmp_path: pathlib.Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint_000000")
    (checkpoint / "rllib_checkpoint.json").write_text("{}")
    (checkpoint / "policy" / "policy.json").unlink()
    assert "no whole checkpoint" in rllib("export", tmp_path, tmp_path / "out").stderr
