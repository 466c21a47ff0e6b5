"""`rllib train` without a file, the old command's options, and who is told of results."""

from __future__ import annotations

import os
import pathlib
from typing import Any
from unittest.mock import MagicMock

import pytest
import yaml
from typer.testing import CliRunner

from rllib_efficientzero.cli import loggers
from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.cli.experiment import Experiment, Overrides, load_experiments
from rllib_efficientzero.cli.inline_source import load_inline_experiment
from rllib_efficientzero.cli.main import app
from rllib_efficientzero.cli.report import resume_command
from rllib_efficientzero.cli.train_options import TrainOptions


def train(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["train", *arguments], catch_exceptions=False)


def test_the_options_are_an_experiment() -> None:
    """What the old command was given says the same in a file."""
    options = TrainOptions(
        env="CartPole-v1",
        stop='{"episode_reward_mean": 150}',
        config='{"num_workers": 2, "lr": {"grid_search": [1, 2]}}',
        checkpoint_freq=5,
        checkpoint_score_attr="min-training_iteration",
        scheduler="AsyncHyperBand",
        scheduler_config='{"max_t": 9}',
        storage_path="/tmp/there",
        log_debug=True,
    )
    experiment = load_inline_experiment("mine", "PPO", {"num_samples": 3, "restore": None}, options.overrides())
    assert (experiment.run, experiment.name, experiment.num_samples) == ("PPO", "mine", 3)
    assert experiment.config == {
        "env": "CartPole-v1",
        "num_env_runners": 2,
        "lr": {"grid_search": [1.0, 2.0]},
        "log_level": "DEBUG",
    }
    assert experiment.stop == {"env_runners/episode_return_mean": 150}
    assert experiment.checkpoint == {
        "checkpoint_at_end": True,
        "checkpoint_frequency": 5,
        "checkpoint_score_attribute": "training_iteration",
        "checkpoint_score_order": "min",
    }
    assert (experiment.search.scheduler, experiment.search.scheduler_settings) == ("asha", {"max_t": 9})
    assert experiment.path == pathlib.Path("/tmp/there/mine")
    assert len(experiment.warnings) == 2, "of the metric and of num_workers"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--env", "CartPole-v1"], "--run: name an algorithm"),
        (["--run", "PPPO", "--env", "CartPole-v1"], "--run: unknown algorithm 'PPPO'; did you mean 'PPO'?"),
        (["--algo", "PPO"], "experiment 'default' has no environment"),
        (["--run", "PPO", "-e", "CartPol-v1"], "--env: unknown environment 'CartPol-v1'; did you mean 'CartPole-v1'?"),
        (["--run", "PPO", "-e", "CartPole-v1", "-c", '{"lrr": 1}'], "--config: unknown key 'lrr'"),
        (["--run", "PPO", "-e", "CartPole-v1", "-s", '{"reward": 1}'], "--stop: unknown stop criterion 'reward'"),
        (["--run", "PPO", "-e", "CartPole-v1", "-n", "a/b"], "experiment name 'a/b'"),
        (["--run", "PPO", "-e", "CartPole-v1", "--restore", "nowhere"], "--restore: there is no checkpoint directory"),
        (["--run", "PPO", "-e", "CartPole-v1", "--scheduler", "ashaa"], "--scheduler: unknown scheduler 'ashaa'"),
        (["--run", "PPO", "--scheduler-config", '{"max_t": 1}'], "--scheduler-config: name the scheduler"),
        (["--run", "PPO", "--framework", "tf2"], "--framework: RLlib's algorithms are written in torch"),
        (["--run", "PPO", "--ray-num-nodes", "2"], "--ray-num-nodes: start a cluster of your own"),
        (["--seed", "1", "file", "x.yaml"], "--seed: options stand behind it: rllib train file FILE --seed 1"),
        (["--seed", "0", "--resume", "file", "x.yaml"], "options stand behind it"),
        (["--run", "PPO", "file", "x.yaml"], "--run: options stand behind it"),
        (["--num-samples", "5", "--restore", "/nonexist", "file", "x.yaml"], "--num-samples: options stand behind it"),
        (["--restore", "/nonexist", "file", "x.yaml"], "--restore: options stand behind it"),
        (["-n", "default", "file", "x.yaml"], "--experiment-name: options stand behind it"),
        (["--stop", "{}", "file", "x.yaml"], "--stop: options stand behind it"),
        (["--resources-per-trial", "{}", "file", "x.yaml"], "--resources-per-trial: options stand behind it"),
    ],
)
def test_wrong_options_are_answered_in_a_sentence(arguments: list[str], complaint: str) -> None:
    done = train(*arguments)
    assert done.exit_code == 2, done.output
    assert complaint in " ".join(done.stderr.split())


def test_a_run_without_a_file_is_prepared() -> None:
    """Imports ray, and starts none."""
    done = train("--run", "PPO", "--env", "CartPole-v1", "--framework", "torch", "-n", "mine", "--dry-run")
    assert done.exit_code == 0, done.output
    plan = yaml.safe_load(done.stdout.replace("# mine", "#"))["mine"]
    assert plan["run"].endswith("PPO")
    assert "--framework is not needed" in done.stderr


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--wandb-key", "s3cret"], '--wandb-key "$WANDB_API_KEY" --resume'),
        (["--wandb-key=s3cret", "--resume"], '--wandb-key="$WANDB_API_KEY" --resume'),
        (["--resume", "--wandb-key", "s3cret"], '--resume --wandb-key "$WANDB_API_KEY"'),
        (["--wandb-project", "s p", "-s", '{"a": 1}'], """--wandb-project 's p' -s '{"a": 1}' --resume"""),
    ],
)
def test_the_command_that_goes_on_holds_no_secret(given: list[str], told: str) -> None:
    assert resume_command(["train", "--run", "PPO", *given]) == f"rllib train --run PPO {told}"


def with_loggers(directory: pathlib.Path, written: str) -> Experiment:
    file = directory / "x.yaml"
    file.write_text(f"name:\n  run: PPO\n  env: CartPole-v1\n  loggers: {written}\n")
    (experiment,) = load_experiments(file, Overrides(loggers=[{"wandb": {"project": "p"}}]))
    return experiment


def test_loggers_are_tunes_callbacks(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda package: package)
    found = with_loggers(tmp_path, "[tensorboard, {mlflow: {tags: {a: b}}}]").loggers
    assert [(logger.name, logger.settings) for logger in found] == [
        ("tensorboard", {}),
        ("mlflow", {"experiment_name": "name", "tags": {"a": "b"}}),
        ("wandb", {"project": "p"}),
    ]
    monkeypatch.setattr("ray.air.integrations.mlflow._MLflowLoggerUtil", MagicMock)  # It imports mlflow.
    made = loggers.make_loggers(found[:2], "x.yaml:4", tmp_path)
    assert [type(callback).__name__ for callback in made] == ["TBXLoggerCallback", "MLflowLoggerCallback"]
    assert (made[1].experiment_name, made[1].tags) == ("name", {"a": "b"})
    made[1].mlflow_util.setup_mlflow.assert_called_once()  # type: ignore[attr-defined]


def test_a_key_is_not_written_among_the_results(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune pickles its callbacks there."""
    monkeypatch.setattr("ray.air.integrations.wandb.wandb", MagicMock())
    monkeypatch.setattr("ray.air.integrations.wandb.WandbLoggerCallback.setup", MagicMock())
    monkeypatch.setenv("WANDB_API_KEY", "")
    (callback,) = loggers.make_loggers(
        [loggers.LoggerSettings("wandb", {"project": "p", "api_key": "s3cret"})], "x.yaml:4", tmp_path
    )
    assert "s3cret" not in repr(vars(callback))
    assert os.environ["WANDB_API_KEY"] == "s3cret"


def test_loggers_that_nobody_hears_are_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a logger's package complains of is said in a sentence, before anything is trained."""

    class Deaf:
        def setup_mlflow(self, **settings: Any) -> None:
            raise RuntimeError("nobody answers\nat http://nowhere")

    monkeypatch.setattr("ray.air.integrations.mlflow._MLflowLoggerUtil", Deaf)
    with pytest.raises(InputError) as refusal:
        loggers.make_loggers([loggers.LoggerSettings("mlflow", {"experiment_name": "name"})], "x.yaml:4", tmp_path)
    assert str(refusal.value) == "x.yaml:4: logger 'mlflow' cannot be used: nobody answers at http://nowhere"


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ("[tensorbord]", "x.yaml:4: unknown logger 'tensorbord'; did you mean 'tensorboard'?"),
        ("[{mlflow: {tracking_url: x}}]", "did you mean 'tracking_uri'?"),
        ("[{mlflow: {tags: x}}]", "x.yaml:4: 'tags' must be a mapping"),
        ("[3]", "x.yaml:4: 'loggers' takes names"),
        ("wandb", "x.yaml:4: 'loggers' must be a list"),
        ("[mlflow]", "x.yaml:4: logger 'mlflow' needs a package that is not installed: pip install mlflow"),
        ("[]", "--wandb-*: logger 'wandb' needs a package that is not installed: pip install wandb"),
    ],
)
def test_loggers_that_cannot_be_are_refused_with_their_line(
    tmp_path: pathlib.Path, written: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(InputError) as refusal:
        with_loggers(tmp_path, written)
    assert complaint in str(refusal.value)
