"""The `rllib` command as a user runs it: in a process of its own, training PPO on CartPole."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import pytest

from rllib_efficientzero.env.rendering import choose_renderer

PPO = """
cartpole:
  run: PPO
  env: CartPole-v1
  stop: {training_iteration: 2}
  checkpoint_config: {checkpoint_frequency: 1}
  config:
    env_runners: {num_env_runners: 0}
    training: {lr: 1e-3, train_batch_size_per_learner: 100, minibatch_size: 50, num_epochs: 1}
"""

EXPLODING_ENV = """
import gymnasium

class Exploding(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0.0, 1.0, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, config=None):
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        if self.steps > 150:
            raise RuntimeError("the reactor exploded")
        return self.observation_space.sample(), 1.0, False, False, {}
"""


def command(*arguments: str) -> list[str]:
    """The console script where it is installed, else the module behind it."""
    script = pathlib.Path(sys.executable).with_name("rllib")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "rllib_efficientzero"]


def run(directory: pathlib.Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    full = [*command(), "train", "file", *arguments, "--storage-path", "results"]
    env = {**os.environ, **environment}
    return subprocess.run(full, cwd=directory, capture_output=True, text=True, timeout=300, check=False, env=env)


def results(directory: pathlib.Path) -> list[dict[str, Any]]:
    (file,) = directory.glob("results/*/*/result.json")
    return [json.loads(line) for line in file.read_text().splitlines()]


def newest_checkpoint(directory: pathlib.Path) -> pathlib.Path:
    return max(directory.glob("results/*/*/checkpoint_*"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two iterations, with a local ray, where RLlib's import of dm_control loads Mesa, and torch Triton."""
    directory = tmp_path_factory.mktemp("trained")
    (directory / "ppo.yaml").write_text(PPO)
    renderer = choose_renderer(required=False)
    # Not with this directory's `sitecustomize`, which leaves out that import.
    environment = {"MUJOCO_GL": renderer, "PYOPENGL_PLATFORM": renderer, "PYTHONPATH": ""}
    done = run(directory, "ppo.yaml", "--ray-num-cpus", "2", **environment)
    assert done.returncode == 0, done.stderr
    assert "[cartpole] iter 2  env steps 200" in done.stdout
    assert "go on with" not in done.stdout
    assert done.stderr == "", "a clean run has nothing to complain about"
    return directory


def test_results_and_checkpoint_are_written(trained: pathlib.Path) -> None:
    lines = results(trained)
    assert [line["training_iteration"] for line in lines] == [1, 2]
    assert lines[-1]["config"]["lr"] == 1e-3
    assert (newest_checkpoint(trained) / "rllib_checkpoint.json").is_file()
    assert list(trained.glob("results/*/*/events.out.tfevents.*")), "TensorBoard's"


@pytest.mark.long
def test_rllibs_own_checkpoints_are_evaluated_once_they_are_trusted(trained: pathlib.Path) -> None:
    full = [*command(), "evaluate", str(newest_checkpoint(trained)), "--trust-checkpoint", "--out", "-"]
    done = subprocess.run(
        [*full, "--episodes", "3"], cwd=trained, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["algorithm"], report["env"]) == ("PPO", "CartPole-v1")
    assert len(report["episodes"]) == 3
    for episode in report["episodes"]:
        assert episode["return"] == episode["length"] >= 8, "CartPole pays 1 per step"


def test_resume_goes_on(trained: pathlib.Path, cluster: str) -> None:
    """A finished run with a raised stop criterion, which is interrupted, that one, and a finished one with nothing to
    do."""
    address = ("--ray-address", cluster)
    code = interrupt_after(trained, "iter 4", "--resume", "--stop", '{"training_iteration": 100000}', *address)
    assert code == 130
    lines = results(trained)
    assert [line["training_iteration"] for line in lines[:4]] == [1, 2, 3, 4]
    assert [line["num_env_steps_sampled_lifetime"] for line in lines[:4]] == [100, 200, 300, 400]
    reached = lines[-1]["training_iteration"]

    target = reached + 2
    finishing = ("ppo.yaml", "--resume", "--stop", json.dumps({"training_iteration": target}), *address)
    done = run(trained, *finishing, "--config", '{"grad_clip": 3, "evaluation": {"evaluation_config": {"seed": 1}}}')
    assert done.returncode == 0, done.stderr
    assert "these settings differ now and are ignored: evaluation_config, grad_clip\n" in done.stderr
    iterations = [line["training_iteration"] for line in results(trained)]
    assert iterations[-1] == target
    # From the newest checkpoint, which is at most one iteration older than the last report.
    assert iterations.index(target) - iterations.index(reached) <= 3

    again = run(trained, *finishing)
    assert again.returncode == 0
    assert "finished already" in again.stdout
    assert [line["training_iteration"] for line in results(trained)] == iterations


def interrupt_after(directory: pathlib.Path, sign: str, *arguments: str) -> int:
    """Runs the command, presses Ctrl-C once `sign` is printed, and returns the exit code."""
    full = [*command(), "train", "file", "ppo.yaml", *arguments, "--storage-path", "results"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(full, cwd=directory, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if sign in line:
                process.send_signal(signal.SIGINT)
                break
        process.communicate(timeout=120)
    return process.returncode


SEARCH = """
search:
  run: PPO
  env: CartPole-v1
  stop: {training_iteration: 6}
  num_samples: 4
  max_concurrent: 2
  scheduler: {name: asha, grace_period: 1, max_t: 6, reduction_factor: 2}
  config:
    env_runners: {num_env_runners: 0}
    training: {lr: {loguniform: [1e-5, 1e-2]}, train_batch_size_per_learner: 100, minibatch_size: 50, num_epochs: 1}
"""


@pytest.mark.long
def test_a_search_ends_bad_trials_early(tmp_path: pathlib.Path, cluster: str) -> None:
    (tmp_path / "search.yaml").write_text(SEARCH)
    done = run(tmp_path, "search.yaml", "--ray-address", cluster)
    assert done.returncode == 0, done.stderr
    files = list(tmp_path.glob("results/*/*/result.json"))
    trials = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    assert len({trial[0]["config"]["lr"] for trial in trials}) == 4
    lengths = [len(trial) for trial in trials]
    assert max(lengths) == 6
    assert min(lengths) < 6, "ASHA ended none"

    again = run(tmp_path, "search.yaml", "--resume", "--ray-address", cluster)
    assert again.returncode == 0, again.stderr
    assert "search is finished already" in again.stdout
    assert [len(file.read_text().splitlines()) for file in files] == lengths, "what ASHA ended went on"


POPULATION = """
population:
  run: PPO
  env: CartPole-v1
  stop: {training_iteration: 4}
  num_samples: 2
  scheduler: {name: pbt, perturbation_interval: 1, quantile_fraction: 0.5, resample_probability: 0, synch: true}
  metric: evaluation/env_runners/episode_return_mean
  config:
    env_runners: {num_env_runners: 0}
    environment: {env_config: {max_episode_steps: {choice: [20, 30, 40]}}}
    training: {lr: {choice: [1e-3, 1e-4]}, train_batch_size_per_learner: 100, minibatch_size: 50, num_epochs: 1}
    evaluation: {evaluation_interval: 2, evaluation_duration: 1, evaluation_num_env_runners: 0}
"""


@pytest.mark.long
def test_a_population_is_judged_by_evaluations_that_most_results_have_not(tmp_path: pathlib.Path, cluster: str) -> None:
    (tmp_path / "population.yaml").write_text(POPULATION)
    done = run(tmp_path, "population.yaml", "--ray-address", cluster)
    assert done.returncode == 0, done.stderr
    trials = [[json.loads(line) for line in file.read_text().splitlines()] for file in tmp_path.rglob("result.json")]
    # What a paused trial reported before, Ray may overwrite.
    assert [trial[-1]["training_iteration"] for trial in trials] == [4, 4]
    (copies,) = tmp_path.rglob("pbt_global.txt")
    mutated = [json.loads(line)[-1] for line in copies.read_text().splitlines()]
    assert mutated
    for config in mutated:
        assert config["lr"] in (1e-3, 1e-4)
        assert config["env_config"]["max_episode_steps"] in (20, 30, 40)


def test_failed_trial_ends_with_one(tmp_path: pathlib.Path, cluster: str) -> None:
    (tmp_path / "exploding.py").write_text(EXPLODING_ENV)
    (tmp_path / "ppo.yaml").write_text(PPO.replace("CartPole-v1", "exploding.Exploding"))
    done = run(tmp_path, "ppo.yaml", "--ray-address", cluster)
    assert done.returncode == 1
    assert "RuntimeError: the reactor exploded" in done.stderr
    named = done.stderr.rpartition("traceback is in ")[2].strip()
    assert "the reactor exploded" in (tmp_path / named).read_text()
    assert "Traceback" not in done.stderr


def test_dry_run_starts_nothing(tmp_path: pathlib.Path) -> None:
    (tmp_path / "pong.yaml").write_text("pong: {run: EfficientZero, env: ALE/Pong-v5, config: {num_simulations: 7}}\n")
    full = [*command(), "train", "file", "pong.yaml", "--dry-run", "--storage-path", "results"]
    environment = {**os.environ, "RAY_TMPDIR": str(tmp_path / "ray")}
    done = subprocess.run(full, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    for expected in ("env: ale_py:ALE/Pong-v5", "num_simulations: 7", "total_env_steps: 100000", "training_done: 1.0"):
        assert expected in done.stdout
    assert "resources_per_trial" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pong.yaml"], "nothing but the file itself"
