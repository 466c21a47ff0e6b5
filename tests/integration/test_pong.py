"""`rllib train file` on real Pong, as a newcomer would start it, and the same command again to go on."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from rllib_efficientzero.cli.main import app

ROOT = pathlib.Path(__file__).parents[2]
SMALL = {
    "env_config": {"screen_size": 48, "grayscale": True, "max_frames": 400},
    "model_config": {"channels": 8, "reduced_channels": 4, "lstm_hidden": 16, "projector_hidden": 16}
    | {"projector_out": 16, "predictor_hidden": 8, "support_size": 20},
    "num_simulations": 3,
    "num_envs_per_env_runner": 4,
    "train_batch_size_per_learner": 8,
    "num_steps_sampled_before_learning_starts": 40,
    "replay_ratio": 0.1,
    "evaluation_interval": 4,
    "evaluation_duration": 2,
}


def arguments(storage: pathlib.Path, stop: dict, *options: str) -> list[str]:
    return [
        *("train", "file", str(ROOT / "tuned_examples" / "pong-ez.yaml"), "--storage-path", str(storage)),
        *("--checkpoint-freq", "4", "--stop", json.dumps(stop), "--config", json.dumps(SMALL), *options),
    ]


def train(storage: pathlib.Path, stop: dict, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "rllib_efficientzero", *arguments(storage, stop, *options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def results(storage: pathlib.Path) -> list[dict]:
    (file,) = storage.glob("pong-ez/*/result.json")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, subprocess.CompletedProcess]:
    storage = tmp_path_factory.mktemp("runs")
    return storage, train(storage, {"num_updates_lifetime": 12}, "--ray-num-cpus", "2")


def test_it_reaches_updates_on_real_pong(finished: tuple[pathlib.Path, subprocess.CompletedProcess]) -> None:
    storage, run = finished
    assert run.returncode == 0, run.stdout + run.stderr
    last = results(storage)[-1]
    assert last["num_updates_lifetime"] >= 12
    assert last["num_env_steps_sampled_lifetime"] >= 120
    assert last["env_runners"]["search"]["simulations_per_s"] > 0
    learner = last["learners"]["default_policy"]
    for name in ("policy_loss", "value_loss", "value_prefix_loss", "consistency_loss", "total_loss", "gradient_norm"):
        assert isinstance(learner[name], float), name
    assert learner["num_non_finite_updates_lifetime"] == 0
    assert "no GPU" in run.stderr or last["config"]["num_gpus_per_learner"] > 0


def test_protocol_and_evaluations_are_saved(finished: tuple[pathlib.Path, subprocess.CompletedProcess]) -> None:
    storage, _ = finished
    (protocol_file,) = storage.glob("pong-ez/*/protocol.json")
    protocol = json.loads(protocol_file.read_text())
    assert protocol["training"]["clip_rewards"]
    assert protocol["training"]["terminal_on_life_loss"]
    assert not protocol["evaluation"]["clip_rewards"]
    assert not protocol["evaluation"]["terminal_on_life_loss"]
    assert protocol["training"]["repeat_action_probability"] == 0.0
    (evaluation_file,) = storage.glob("pong-ez/*/evaluation.json")
    first = json.loads(evaluation_file.read_text())["evaluations"][0]
    assert len(first["episode_returns"]) == 2
    assert first["episode_lengths"] == [100, 100]  # 400 frames at four frames per step


@pytest.mark.long
def test_the_same_command_goes_on(finished: tuple[pathlib.Path, subprocess.CompletedProcess], cluster: str) -> None:
    storage, _ = finished
    before = results(storage)[-1]
    run = train(storage, {"num_updates_lifetime": 20}, "--resume", "--ray-address", cluster)
    assert run.returncode == 0, run.stdout + run.stderr
    after = results(storage)
    assert after[-1]["num_updates_lifetime"] >= 20
    resumed = next(row for row in after if row["training_iteration"] > before["training_iteration"])
    assert resumed["num_updates_lifetime"] > before["num_updates_lifetime"]
    assert resumed["num_env_steps_sampled_lifetime"] > before["num_env_steps_sampled_lifetime"]
    assert resumed["replay_buffer"]["num_positions"] > before["replay_buffer"]["num_positions"]
    (checkpoint,) = list(storage.glob("pong-ez/*/checkpoint_*"))[-1:]
    assert (checkpoint / "replay" / "replay.json").exists()


def test_dry_run_says_what_it_would_do_and_does_nothing(tmp_path: pathlib.Path) -> None:
    run = CliRunner().invoke(app, arguments(tmp_path, {"num_updates_lifetime": 12}, "--dry-run"))
    assert run.exit_code == 0, run.output
    for expected in ("num_simulations", "repeat_action_probability", "frame_skip"):
        assert expected in run.stdout
    assert list(tmp_path.iterdir()) == []
