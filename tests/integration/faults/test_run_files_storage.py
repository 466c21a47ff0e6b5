"""What a run leaves beside Tune's results is in the storage, wherever that is, and goes on there when it is resumed."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pyarrow.fs
import pytest
from checkpoint_helpers import tiny_config
from ray import tune

from rllib_efficientzero import run_files


def test_they_lie_beside_the_results(shared_ray: None, tmp_path: pathlib.Path) -> None:
    storage = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    config = tiny_config("CartPole-v1").evaluation(evaluation_interval=2, evaluation_duration=2)
    run_config = tune.RunConfig(
        name="run",
        storage_path="bucket",
        storage_filesystem=storage,
        stop={"training_iteration": 4},
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=4),
        verbose=0,
    )
    results = tune.Tuner("EfficientZero", param_space=config, run_config=run_config).fit()
    assert not results.errors
    trial = tmp_path / results[0].path
    assert (trial / "result.json").exists()
    assert json.loads((trial / "protocol.json").read_text())["versions"]["ray"]
    assert len(_evaluations(trial)) == 2
    assert not list(trial.glob("*.tmp"))


def _evaluations(directory: pathlib.Path) -> Any:
    return json.loads((directory / "evaluation.json").read_text())["evaluations"]


def test_evaluations_go_on_on_another_machine(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = pyarrow.fs.SubTreeFileSystem(str(tmp_path / "storage"), pyarrow.fs.LocalFileSystem())
    (tmp_path / "storage").mkdir()

    def record(steps: int) -> dict[str, Any]:
        return {"num_interactions_lifetime": steps, "num_updates_lifetime": 0, "episode_returns": [1.0]}

    def steps() -> list[int]:
        return [entry["num_interactions_lifetime"] for entry in _evaluations(tmp_path / "storage" / "trial")]

    first, second = (run_files.Place(tmp_path / name, storage, "trial") for name in ("first", "second"))
    for number in (1, 2):
        run_files.append_evaluation(first, {}, record(number))
    run_files.append_evaluation(second, {}, record(3))
    assert steps() == [1, 2, 3]
    run_files.forget_later_evaluations(first, {}, num_interactions=2, num_updates=0, iteration=0)
    assert steps() == [1, 2]
    # A storage that is away costs nothing of what is known here.
    (tmp_path / "storage").rename(tmp_path / "away")
    (tmp_path / "storage").touch()
    run_files.append_evaluation(first, {}, record(4))
    assert "trial/evaluation.json could not be written to the storage" in caplog.text
    (tmp_path / "storage").unlink()
    (tmp_path / "away").rename(tmp_path / "storage")
    run_files.append_evaluation(first, {}, record(5))
    assert steps() == [1, 2, 4, 5]
