"""docs/custom_env.md: its code runs, its experiment is valid, its spaces become what it says."""

from __future__ import annotations

import pathlib
import re
import sys
import types

import pytest
from typer.testing import CliRunner

from rllib_efficientzero.cli.main import app
from rllib_efficientzero.env.spaces import adapt

TEXT = (pathlib.Path(__file__).parents[3] / "docs" / "custom_env.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("my_envs")
    for block in blocks("python"):
        exec(block, module.__dict__)
    monkeypatch.setitem(sys.modules, "my_envs", module)
    return module


def test_nothing_can_be_said_against_the_example(module: types.ModuleType) -> None:
    result = CliRunner().invoke(
        app, ["check-env", "my_envs.Corridor", "--env-config", '{"length": 6}', "--seconds", "0.2"]
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] in TEXT
    assert result.stdout.splitlines()[-1] in TEXT


def test_the_experiment_can_be_run(module: types.ModuleType, tmp_path: pathlib.Path) -> None:
    (experiment,) = blocks("yaml")
    file = tmp_path / "x.yaml"
    file.write_text(experiment)
    result = CliRunner().invoke(app, ["train", "file", str(file), "--dry-run"])
    assert result.exit_code == 0, result.output


def test_functions_that_wrap_may_be_named(module: types.ModuleType) -> None:
    pytest.importorskip("minigrid")
    env = adapt(module.make_minigrid({}))
    assert env.observation_space.shape == (147,)
    result = CliRunner().invoke(app, ["check-env", "my_envs.make_minigrid", "--seconds", "0.2"])
    assert result.exit_code == 0, result.output
