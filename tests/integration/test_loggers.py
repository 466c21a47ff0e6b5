"""`loggers:` of an experiment file, for real: a run's numbers reach Weights & Biases (offline) and MLflow (files)."""

from __future__ import annotations

import json
import math
import os
import pathlib
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from checkpoint_helpers import TINY_NETWORK, TINY_TRAINING

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

METRICS = ("num_env_steps_sampled_lifetime", "num_updates_lifetime", "timers/training_iteration")
ITERATIONS = 3
BLOCK_BYTES = 1 << 15
"""Of the offline file: LevelDB's log format, behind seven bytes of its own."""


def train(directory: pathlib.Path, loggers: list[Any], cluster: str) -> subprocess.CompletedProcess[str]:
    """Three iterations on CartPole."""
    config = {
        **TINY_TRAINING,
        "rollout_fragment_length": 30,
        "num_gpus_per_learner": 0,
        "model_config": TINY_NETWORK,
    }
    stop = {"training_iteration": ITERATIONS}
    experiment = {"run": "EfficientZero", "env": "CartPole-v1", "stop": stop, "loggers": loggers, "config": config}
    (directory / "x.yaml").write_text(yaml.safe_dump({"logged": experiment}))
    command = [sys.executable, "-m", "rllib_efficientzero", "train", "file", "x.yaml", "--storage-path", "results"]
    without_key = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.run(
        [*command, "--ray-address", cluster],
        cwd=directory,
        env=without_key | {"NETRC": str(directory / "none"), "MLFLOW_ALLOW_FILE_STORE": "true"},
        capture_output=True,
        text=True,
        check=False,
    )


def results(directory: pathlib.Path) -> list[list[float]]:
    """What the run itself wrote: `METRICS` by iteration."""
    (file,) = directory.glob("results/logged/*/result.json")
    found = []
    for line in file.read_text().splitlines():
        result = json.loads(line)
        found.append([float(_at(result, name)) for name in METRICS])
    assert len(found) == ITERATIONS
    assert all(math.isfinite(value) for row in found for value in row)
    return found


def _at(result: Any, name: str) -> Any:
    for key in name.split("/"):
        result = result[key]
    return result


def test_a_runs_numbers_arrive_at_weights_and_biases(tmp_path: pathlib.Path, cluster: str) -> None:
    """Offline: in a file among the results, which `wandb sync` sends later."""
    pytest.importorskip("wandb")
    done = train(tmp_path, [{"wandb": {"mode": "offline", "tags": ["a"]}}], cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.glob("results/logged/wandb/offline-run-*/*.wandb")
    records = list(_records(file))
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (run.project, list(run.tags)) == ("logged", ["a"])
    rows = [record.history.item for record in records if record.WhichOneof("record_type") == "history"]
    told = [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]
    assert [[row[name] for name in METRICS] for row in told] == results(tmp_path)


def _records(file: pathlib.Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = BLOCK_BYTES - place % BLOCK_BYTES
        if left < 7:  # too little for a header: zeros
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def test_a_runs_numbers_arrive_at_mlflow(tmp_path: pathlib.Path, cluster: str) -> None:
    mlflow = pytest.importorskip("mlflow")
    done = train(tmp_path, [{"mlflow": {"tracking_uri": "mlruns", "tags": {"who": "me"}}}], cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    client = mlflow.MlflowClient(str(tmp_path / "mlruns"))
    (run,) = client.search_runs([client.get_experiment_by_name("logged").experiment_id])
    assert run.data.tags["who"] == "me"
    assert run.data.params["num_simulations"] == str(TINY_TRAINING["num_simulations"])
    columns = [[told.value for told in client.get_metric_history(run.info.run_id, name)] for name in METRICS]
    assert [list(row) for row in zip(*columns, strict=True)] == results(tmp_path)


def test_a_logger_without_its_key_is_refused_before_anything_runs(tmp_path: pathlib.Path, cluster: str) -> None:
    pytest.importorskip("wandb")
    done = train(tmp_path, ["wandb"], cluster)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "logger 'wandb' cannot be used: No WandB API key found" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("results/logged/*/result.json"))
