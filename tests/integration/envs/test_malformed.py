"""Environments with a mistake are refused before anything is started, each with its own sentence."""

from __future__ import annotations

import pathlib

import pytest
from click.testing import Result
from typer.testing import CliRunner

from rllib_efficientzero.cli.main import app
from tests.unit.env.test_diagnosis import ERRORS


def before_training(directory: pathlib.Path, env: str, config: str = "{}") -> Result:
    file = directory / "x.yaml"
    file.write_text(f"x:\n  run: EfficientZero\n  env: {env}\n  stop: {{training_iteration: 1}}\n  config: {config}\n")
    return CliRunner().invoke(app, ["train", "file", str(file), "--dry-run"])


REFUSED = {name: problem for name, (problem, _) in ERRORS.items() if name != "RaisesWhenMade"}
"""What another machine of the cluster may be able to make is only warned of."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_played_is_refused_before_training(name: str, tmp_path: pathlib.Path) -> None:
    result = before_training(tmp_path, f"tests.malformed_envs.{name}")
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/x.yaml:3: the environment ")
    assert "cannot be trained on: " in line
    assert REFUSED[name] in line
    assert "Traceback" not in result.output


def test_what_the_run_is_told_to_live_with_is_only_warned_of(tmp_path: pathlib.Path) -> None:
    result = before_training(tmp_path, "tests.malformed_envs.NanReward", "{on_bad_env_step: drop_episode}")
    assert result.exit_code == 0, result.output
    assert "warning: the environment" in result.stderr
    result = before_training(tmp_path, "tests.malformed_envs.TextObservations", "{on_bad_env_step: drop_episode}")
    assert result.exit_code == 2, result.output


def test_warnings_are_given_before_training(tmp_path: pathlib.Path) -> None:
    config = "{rl_module: {model_config: {support_size: 2}}}"
    result = before_training(tmp_path, "CartPole-v1", config)
    assert result.exit_code == 0, result.output
    assert "more than the networks can express (8 with a support_size of 2)" in result.stderr
    assert "warning" not in before_training(tmp_path, "CartPole-v1").stderr


def test_what_makes_vectors_is_left_to_the_run(tmp_path: pathlib.Path) -> None:
    config = "{env_runners: {gym_env_vectorize_mode: vector_entry_point}}"
    assert before_training(tmp_path, "tests.malformed_envs.NanReward", config).exit_code == 0


def test_there_are_as_many_as_promised() -> None:
    assert len(REFUSED) >= 15
