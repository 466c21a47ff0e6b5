"""Searches of several EfficientZero runs, as a user starts them: ASHA on CartPole, and PBT with its replay buffers.

`SEARCH_REPORT=DIR` keeps the table and the plot of the search on CartPole there.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import runpy
import subprocess
import sys
from typing import Any

import pytest
import yaml
from checkpoint_helpers import TINY_NETWORK, TINY_TRAINING

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

EXAMPLE = pathlib.Path(__file__).parents[2] / "tuned_examples" / "cartpole-ez-tune.yaml"
NUM_CONFIGURATIONS = 6
ITERATIONS = 12
"""Of 100 environment steps each; the example's runs have 40."""
GRACE = 3


def rllib(directory: pathlib.Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "rllib_efficientzero", *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def search(directory: pathlib.Path, experiment: dict[str, Any], cluster: str) -> list[list[dict[str, Any]]]:
    """Runs an experiment; every trial's results."""
    (directory / "search.yaml").write_text(yaml.safe_dump({"search": experiment}))
    rllib(directory, "train", "file", "search.yaml", "--storage-path", "results", "--ray-address", cluster)
    files = sorted(directory.glob("results/search/*/result.json"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def test_asha_ends_the_worse_configurations_of_cartpole(tmp_path: pathlib.Path, cluster: str) -> None:
    """The example with a smaller budget."""
    experiment = yaml.safe_load(EXAMPLE.read_text())["cartpole-ez-tune"]
    experiment["num_samples"] = NUM_CONFIGURATIONS
    experiment["max_concurrent"] = 3
    experiment["scheduler"] |= {"grace_period": GRACE, "max_t": ITERATIONS}
    experiment["config"]["seed"] = 0
    experiment["config"]["training"] |= {
        "total_env_steps": 100 * ITERATIONS,
        "num_steps_sampled_before_learning_starts": 200,
        "train_batch_size_per_learner": 64,
    }
    trials = search(tmp_path, experiment, cluster)
    assert len({trial[0]["config"]["lr"] for trial in trials}) == NUM_CONFIGURATIONS
    lengths = [len(trial) for trial in trials]
    # One more where no episode ended in the last iteration: a trial is judged by its next result then.
    assert ITERATIONS <= max(lengths) <= ITERATIONS + 1, "the best one runs to its end"
    ended_early = [trial for trial in trials if len(trial) < ITERATIONS]
    assert len(ended_early) >= NUM_CONFIGURATIONS // 3
    assert min(lengths) >= GRACE
    best = max(trials, key=_return)
    assert len(best) >= ITERATIONS
    _keep(tmp_path, trials)


def _return(trial: list[dict[str, Any]]) -> float:
    """The last that was reported; NaN means that no episode ended in an iteration."""
    returns = [float(result["env_runners"]["episode_return_mean"]) for result in trial]
    return next(value for value in reversed(returns) if not math.isnan(value))


def _keep(directory: pathlib.Path, trials: list[list[dict[str, Any]]]) -> None:
    report = os.environ.get("SEARCH_REPORT")
    rows = [
        {
            "lr": trial[0]["config"]["lr"],
            "num_simulations": trial[0]["config"]["num_simulations"],
            "td_steps": trial[0]["config"]["td_steps"],
            "iterations": len(trial),
            "ended_early_by_asha": len(trial) < ITERATIONS,
            "env_steps": trial[-1]["num_env_steps_sampled_lifetime"],
            "episode_return_mean": round(_return(trial), 2),
            "seconds": round(trial[-1]["time_total_s"], 1),
        }
        for trial in sorted(trials, key=lambda trial: -_return(trial))
    ]
    target = pathlib.Path(report).absolute() if report else directory
    rllib(directory, "plot", "results/search", "--out", str(target / "cartpole-ez-tune.png"))
    (target / "cartpole-ez-tune.json").write_text(json.dumps(rows, indent=1) + "\n")


def test_the_search_in_python_runs(tmp_path: pathlib.Path, cluster: str) -> None:
    example = runpy.run_path(str(EXAMPLE.with_name("cartpole_ez_tune.py")))
    tuner = example["make_tuner"](2, total_env_steps=600, storage_path=str(tmp_path), grace_period=3)
    results = tuner.fit()
    assert not results.errors
    assert len({result.config["lr"] for result in results}) == 2
    # The four environments step together and never beyond the budget.
    assert 600 - 3 <= max(result.metrics["num_env_steps_sampled_lifetime"] for result in results) <= 600
    assert results.get_best_result().checkpoint is not None


def test_pbt_keeps_the_replay_of_the_trial_it_copies(tmp_path: pathlib.Path, cluster: str) -> None:
    """Two trials whose frames and rewards differ; the worse one goes on with the better one's experience alone."""
    experiment = {
        "run": "tagged.TellingEfficientZero",
        "env": "tagged.Tagged",
        "stop": {"training_iteration": 4},
        "max_concurrent": 2,
        "scheduler": {
            "name": "pbt",
            "perturbation_interval": 2,
            "quantile_fraction": 0.5,
            "synch": True,
            "hyperparam_mutations": {"lr": [0.01, 0.02]},
        },
        "config": {
            **TINY_TRAINING,
            "env_config": {"tag": {"grid_search": [1, 2]}},
            "num_envs_per_env_runner": 2,
            "rollout_fragment_length": 10,
            "num_gpus_per_learner": 0,
            "model_config": TINY_NETWORK,
        },
    }
    trials = search(tmp_path, experiment, cluster)
    told = {trial[0]["config"]["env_config"]["tag"]: [result["replay_tags"] for result in trial] for trial in trials}
    assert [list(tags) for tags in told[1]] == [["1"], ["1"], ["2"], ["2"]]
    assert told[2][2]["2"] >= told[2][1]["2"] == 40, "the copied trial goes on with what it had"
    assert told[1][2:] == told[2][2:], "and so does its copy"
