"""YAML with lines, JSON options, and how they are merged into experiments."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.cli.experiment import Experiment, Overrides, load_experiments
from rllib_efficientzero.cli.overrides import merge_deep, parse_json_option
from rllib_efficientzero.cli.yaml_source import load_yaml

OLD_STYLE = """
cartpole-ppo:
  run: PPO
  env: CartPole-v1
  local_dir: /tmp/somewhere
  stop:
    episode_reward_mean: 150
    timesteps_total: 1e5
  checkpoint_freq: 5
  keep_checkpoints_num: 2
  checkpoint_score_attr: min-training_iteration
  resources_per_trial: {cpu: 1}
  config:
    num_workers: 2
    lr: 1e-4
    gamma: {grid_search: [0.9, 0.99]}
"""


def load(text: str, tmp_path: pathlib.Path, **overrides: Any) -> list[Experiment]:
    file = tmp_path / "experiments.yaml"
    file.write_text(text)
    return load_experiments(file, Overrides(**overrides))


def test_lines_are_those_of_keys_and_items() -> None:
    located = load_yaml("a:\n  b: 1\n  c:\n    - x\n    - y\n", "f")
    assert located.data == {"a": {"b": 1, "c": ["x", "y"]}}
    assert [located.line(path) for path in [("a",), ("a", "b"), ("a", "c"), ("a", "c", 1)]] == [1, 2, 3, 5]
    assert located.line(("a", "missing", "deeper")) == 1


def test_anchors_and_merge_keys_work() -> None:
    text = (
        "base: &base {lr: 1, gamma: 2}\nother: &other {tau: 5, lr: 7}\nx:\n  lr: 3\n  <<: [*base, *other]\ny: *base\n"
    )
    data = load_yaml(text, "f").data
    assert data["x"] == {"lr": 3, "gamma": 2, "tau": 5}
    assert data["y"] == {"lr": 1, "gamma": 2}
    data["y"]["lr"] = 9
    assert data["base"]["lr"] == 1, "an alias must not share its mapping"


def test_old_schema_is_understood(tmp_path: pathlib.Path) -> None:
    (experiment,) = load(OLD_STYLE, tmp_path)
    assert experiment.stop == {"env_runners/episode_return_mean": 150, "num_env_steps_sampled_lifetime": 1e5}
    assert experiment.config == {
        "env": "CartPole-v1",
        "num_env_runners": 2,
        "lr": 1e-4,
        "gamma": {"grid_search": [0.9, 0.99]},
    }
    assert experiment.checkpoint == {
        "checkpoint_frequency": 5,
        "checkpoint_at_end": True,
        "num_to_keep": 2,
        "checkpoint_score_attribute": "training_iteration",
        "checkpoint_score_order": "min",
    }
    assert experiment.path == pathlib.Path("/tmp/somewhere/cartpole-ppo")
    told = "\n".join(experiment.warnings)
    for old in ("episode_reward_mean", "timesteps_total", "local_dir", "num_workers", "resources_per_trial"):
        assert told.count(f"'{old}'") == 1


def test_command_line_wins_and_keeps_the_rest(tmp_path: pathlib.Path) -> None:
    text = OLD_STYLE.replace("lr: 1e-4", "training: {lr: 1e-4}\n    env_config: {a: 1, b: 2}")
    (experiment,) = load(
        text,
        tmp_path,
        config={"lr": 5, "env_config": {"b": 3}, "gamma": 0.5, "env_runners": {"num_env_runners": 0}},
        stop={"training_iteration": 2, "episode_reward_mean": 10},
        env="Acrobot-v1",
        seed=7,
        storage_path="/tmp/else",
        checkpoint={"checkpoint_frequency": 1},
    )
    assert experiment.config == {
        "env": "Acrobot-v1",
        "lr": 5,
        "gamma": 0.5,
        "env_config": {"a": 1, "b": 3},
        "num_env_runners": 0,
        "seed": 7,
    }
    assert experiment.stop["training_iteration"] == 2
    assert experiment.stop["env_runners/episode_return_mean"] == 10
    assert experiment.checkpoint["checkpoint_frequency"] == 1
    assert experiment.checkpoint["num_to_keep"] == 2
    assert experiment.path == pathlib.Path("/tmp/else/cartpole-ppo")
    assert experiment.place("lr") == "--config"
    assert experiment.place("env") == "--env"


def test_local_mode_leaves_one_process(tmp_path: pathlib.Path) -> None:
    (experiment,) = load(OLD_STYLE, tmp_path, local_mode=True)
    assert experiment.config["num_env_runners"] == experiment.config["num_learners"] == 0


def test_storage_may_be_a_bucket(tmp_path: pathlib.Path) -> None:
    (experiment,) = load(OLD_STYLE, tmp_path, storage_path="s3://bucket/runs/")
    assert experiment.path == "s3://bucket/runs/cartpole-ppo"


@pytest.mark.parametrize(
    ("base", "over", "merged"),
    [
        ({"a": 1}, {}, {"a": 1}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": {"b": 1}}, {"a": 2}, {"a": 2}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"grid_search": [1]}}, {"a": {"grid_search": [2]}}, {"a": {"grid_search": [2]}}),
        ({"a": {"grid_search": [1]}}, {"a": {"b": 2}}, {"a": {"b": 2}}),
    ],
)
def test_merge_deep(base: dict[str, Any], over: dict[str, Any], merged: dict[str, Any]) -> None:
    before = repr(base)
    assert merge_deep(base, over) == merged
    assert repr(base) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{'a': 1}", "double quotes"),
        ("{lr: 1}", "double quotes"),
        ('{"a": 1', "character 8"),
        ("[1]", "JSON object"),
        ('{"a": 1, "a": 2}', "duplicate key 'a'"),
        ("", "character 1"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_wrong_json_is_explained(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        parse_json_option(text, "--config")
    assert caught.value.where == "--config"


def test_json_option() -> None:
    assert parse_json_option('{"a": {"b": [1, null]}}', "--config") == {"a": {"b": [1, None]}}
