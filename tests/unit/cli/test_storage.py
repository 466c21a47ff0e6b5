"""Where results cannot be written, a run is refused before ray is started."""

from __future__ import annotations

import pathlib

import pytest
from click.testing import Result
from typer.testing import CliRunner

from rllib_efficientzero.cli.main import app


@pytest.fixture(autouse=True)
def directory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    return tmp_path


def train(*options: str, key: str = "") -> Result:
    pathlib.Path("x.yaml").write_text(f"x:\n  run: PPO\n  env: CartPole-v1\n{key}")
    return CliRunner().invoke(app, ["train", "file", "x.yaml", *options])


@pytest.mark.parametrize("path", ["file", "file/below", "/proc/x"])
def test_results_need_a_directory(path: str) -> None:
    for options in ([], ["--dry-run"]):
        result = train("--storage-path", path, *options)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("error: --storage-path: results cannot be written to ")
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("key", ["storage_path", "local_dir"])
def test_the_line_is_named(key: str) -> None:
    assert train("--dry-run", key=f"  {key}: file\n").stderr.startswith("error: x.yaml:4: results cannot be written to")


def test_a_dry_run_leaves_nothing_behind(directory: pathlib.Path) -> None:
    result = train("--dry-run", "--storage-path", "new/results")
    assert result.exit_code == 0, result.output
    assert not (directory / "new").exists()
