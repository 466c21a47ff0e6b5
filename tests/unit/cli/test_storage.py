"""Where results cannot be written, a run is refused before ray is started; where another waits, there is a warning."""

from __future__ import annotations

import json
import pathlib
from typing import Any

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


def write_record(directory: pathlib.Path, status: str, result: dict[str, Any], name: str = "2026-01-01") -> None:
    """As Tune writes it, of one trial that was to stop after 3 iterations."""
    trial = json.dumps({"status": status, "stopping_criterion": {"training_iteration": 3}})
    record = {"trial_data": [[trial, json.dumps({"last_result": result})]]}
    (directory / "results/x").mkdir(parents=True, exist_ok=True)
    (directory / f"results/x/experiment_state-{name}.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("status", "result", "warned"),
    [
        ("PAUSED", {"training_iteration": 2}, True),
        ("ERROR", {"training_iteration": 2}, True),
        ("TERMINATED", {"training_iteration": 2, "done": False}, True),
        ("TERMINATED", {"training_iteration": 2, "done": True}, False),
        ("TERMINATED", {"training_iteration": 3}, False),
        ("ERROR", {}, False),
        ("PENDING", {}, False),
    ],
)
def test_an_interrupted_run_is_warned_of(directory: pathlib.Path, status: str, result: dict, warned: bool) -> None:
    write_record(directory, status, result)
    warning = f"warning: {directory / 'results/x'} holds an interrupted run; --resume goes on with it"
    dry_run = train("--dry-run", "--storage-path", "results")
    assert dry_run.exit_code == 0, dry_run.output
    assert (warning in dry_run.stderr) == warned
    assert "interrupted" not in train("--dry-run", "--storage-path", "results", "--resume").stderr


def test_only_the_newest_record_counts(directory: pathlib.Path) -> None:
    write_record(directory, "PAUSED", {"training_iteration": 2})
    write_record(directory, "TERMINATED", {"training_iteration": 3}, "2026-01-02")
    assert "interrupted" not in train("--dry-run", "--storage-path", "results").stderr


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"trial_data": [["{}", "{}"]]}', '{"trial_data": 3}'])
def test_a_damaged_record_is_no_interrupted_run(directory: pathlib.Path, text: str) -> None:
    write_record(directory, "PAUSED", {})
    (directory / "results/x/experiment_state-2026-01-01.json").write_text(text)
    result = train("--dry-run", "--storage-path", "results")
    assert result.exit_code == 0, result.output
    assert "interrupted" not in result.stderr
