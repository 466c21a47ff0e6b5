"""What is printed at the end of a run: the last scores, and what to do next."""

from __future__ import annotations

import json
import pathlib
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial

from rllib_efficientzero.cli.experiment import Experiment
from rllib_efficientzero.cli.report import print_end
from rllib_efficientzero.cli.runner import Outcome
from rllib_efficientzero.cli.search_settings import SearchSettings

STOP = {"training_iteration": 3.0}
NAN = float("nan")


def ended(
    directory: pathlib.Path, *returns: float, status: str = Trial.TERMINATED, file: str = "manifest.json"
) -> SimpleNamespace:
    """A trial with an iteration per evaluation's return; with a checkpoint, unless there was none."""
    results = [
        {"training_iteration": i, "evaluation": {"env_runners": {"episode_return_mean": value}}}
        for i, value in enumerate(returns, start=1)
    ]
    checkpoint = directory / "checkpoint_000000"
    checkpoint.mkdir(parents=True)
    (checkpoint / file).touch()
    (directory / "result.json").write_text("".join(json.dumps(result) + "\n" for result in results) + '{"torn": ')
    return SimpleNamespace(
        trial_id=directory.name,
        experiment_tag=directory.name,
        status=status,
        path=str(directory),
        last_result=results[-1] if results else {},
        checkpoint=SimpleNamespace(path=str(checkpoint)) if results else None,
        run_metadata=SimpleNamespace(error_filename="error.txt"),
        error_file="error.txt",
    )


def printed(capsys: pytest.CaptureFixture[str], *trials: Any, unfinished: tuple[Any, ...] = ()) -> str:
    metric = "evaluation/env_runners/episode_return_mean"
    experiment = Experiment("x", "EfficientZero", {}, stop=STOP, search=SearchSettings(metric=metric))
    prepared: Any = SimpleNamespace(experiment=experiment)
    print_end(prepared, Outcome(list(trials), list(unfinished)), ["train", "file", "x.yaml"])
    return "".join(capsys.readouterr().out.split("\n"))


def test_a_finished_run_is_to_be_looked_at(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, ended(tmp_path / "a", 1.0, 2.0, 500.0), ended(tmp_path / "b", 1.0, 2.0, 3.0))
    path = tmp_path / "a" / "checkpoint_000000"
    assert f"look at it with: rllib evaluate {path} or rllib play {path}" in text
    assert "go on with" not in text


def test_other_algorithms_checkpoints_are_not_recommended(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, ended(tmp_path / "a", 1.0, 2.0, 3.0, file="rllib_checkpoint.json"))
    assert "look at it" not in text
    assert "go on with" not in text


def test_what_is_unfinished_goes_on(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "go on with: rllib train file x.yaml --resume"
    interrupted = ended(tmp_path / "interrupted", 1.0)
    assert command in printed(capsys, interrupted, unfinished=(interrupted,))
    assert command in printed(capsys, ended(tmp_path / "out of time", 1.0))
    assert command in printed(capsys, ended(tmp_path / "failed later", 1.0, status=Trial.ERROR))
    assert command in printed(capsys)


def test_what_failed_before_training_would_fail_again(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "go on with" not in printed(capsys, ended(tmp_path / "a", status=Trial.ERROR))


def test_the_last_score_is_shown_where_the_last_result_has_none(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "417.5" in printed(capsys, ended(tmp_path / "a", 100.0, 417.5, NAN))
