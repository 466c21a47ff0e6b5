"""The generated key lists are current and agree with RLlib's classes."""

from __future__ import annotations

import pytest

from rllib_efficientzero import known_keys


def test_generated_file_is_current() -> None:
    assert known_keys.render() == known_keys.FILE.read_text(), (
        "config keys changed: python -m rllib_efficientzero.known_keys --write"
    )


def test_every_registered_algorithm_is_there() -> None:
    from ray.rllib.algorithms.registry import ALGORITHMS

    assert set(known_keys.algorithm_names()) == {*ALGORITHMS, "EfficientZero"}


@pytest.mark.parametrize(
    ("algorithm", "key", "types"),
    [
        ("PPO", "clip_param", "float"),
        ("PPO", "num_env_runners", "int"),
        ("PPO", "lr", "float|list"),
        ("DQN", "replay_buffer_config", "dict"),
        ("EfficientZero", "num_simulations", "int"),
        ("EfficientZero", "replay_ratio", "float"),
    ],
)
def test_types_come_from_the_signatures(algorithm: str, key: str, types: str) -> None:
    schema = known_keys.load()[algorithm]
    assert schema.types[key] == types
    group = "env_runners" if key == "num_env_runners" else "training"
    assert key in schema.groups[group]
