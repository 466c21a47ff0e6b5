"""Mistakes in `model_config`, custom networks among it, are told in a sentence before ray is started."""

from __future__ import annotations

import pathlib

import pytest
from click.testing import Result
from typer.testing import CliRunner

from rllib_efficientzero.cli.main import app

MODULE = """
import gymnasium
from torch import nn
from rllib_efficientzero import Networks

class Fitting(Networks):
    pass

class Halving(nn.Module):
    def forward(self, latent, action):
        return latent[:, : latent.shape[1] // 2]

class Mismatched(Networks):
    def dynamics(self, latent_shape):
        return Halving()

class CartPole(gymnasium.Wrapper):
    def __init__(self, config):
        super().__init__(gymnasium.make("CartPole-v1"))
"""
PYTHON = """
from rllib_efficientzero import EfficientZeroConfig

config = EfficientZeroConfig().environment("{env}").rl_module(model_config={{"networks": "my_networks.{networks}"}})
"""
MISMATCH = "the representation makes latents of shape"


@pytest.fixture(autouse=True)
def directory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


def dry_run(env: str, *lines: str, options: tuple[str, ...] = ()) -> Result:
    """Of an experiment whose `model_config` has these lines, the first of which is the file's seventh."""
    head = f"x:\n  run: EfficientZero\n  env: {env}\n  config:\n    rl_module:\n      model_config:\n"
    text = head + "".join(f"        {line}\n" for line in lines)
    pathlib.Path("x.yaml").write_text(text)
    return CliRunner().invoke(app, ["train", "file", "x.yaml", "--dry-run", *options])


@pytest.mark.parametrize("env", ["CartPole-v1", "my_networks.CartPole", "ale_py:ALE/Pong-v5"])
def test_networks_that_do_not_fit_are_refused(env: str) -> None:
    result = dry_run(env, "lstm_hidden: 8", "networks: my_networks.Mismatched")
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"error: x.yaml:8: {MISMATCH}")
    assert len(result.stderr.splitlines()) == 1


def test_networks_that_fit_pass() -> None:
    result = dry_run("CartPole-v1", "networks: my_networks.Fitting")
    assert result.exit_code == 0, result.output


def test_networks_of_images_are_tried_where_a_python_file_names_them() -> None:
    pathlib.Path("x.py").write_text(PYTHON.format(env="ale_py:ALE/Pong-v5", networks="Mismatched"))
    result = CliRunner().invoke(app, ["train", "file", "x.py", "--dry-run"])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"error: x.py: {MISMATCH}")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("lstm_hiden: 8", "unknown key 'lstm_hiden' in model_config; did you mean 'lstm_hidden'?"),
        ("colour: 8", "unknown key 'colour' in model_config; known ones are action_encoding, channels, "),
        ("lstm_hidden: -8", "model_config['lstm_hidden'] must be a positive integer, not -8"),
        ("networks: nowhere.Mine", "model_config['networks'] 'nowhere.Mine' cannot be imported"),
    ],
)
def test_the_line_of_a_wrong_size_is_named(line: str, complaint: str) -> None:
    result = dry_run("CartPole-v1", "latent_size: 8", line)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"error: x.yaml:8: EfficientZero: {complaint}")


def test_the_option_of_a_wrong_size_is_named() -> None:
    config = '{"model_config": {"lstm_hiden": 8}}'
    result = dry_run("CartPole-v1", "lstm_hidden: 8", options=("--config", config))
    assert result.stderr.startswith("error: --config: EfficientZero: unknown key 'lstm_hiden' in model_config")
