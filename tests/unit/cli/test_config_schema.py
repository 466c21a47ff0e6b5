"""Groups, types, renamed keys and suggestions of `config_schema`, on the real keys of every algorithm."""

from __future__ import annotations

import random
import string

import pytest

from rllib_efficientzero import known_keys
from rllib_efficientzero.config_schema import (
    ConfigError,
    KeySchema,
    UnknownKeyError,
    WrongTypeError,
    check_known_keys,
    edit_distance,
    nearest,
    normalise_env,
    normalise_value,
    resolve_config,
)

SCHEMA = known_keys.load()["PPO"]
EFFICIENT_ZERO = known_keys.load()["EfficientZero"]


def one_edit_typos(word: str, rng: random.Random) -> list[str]:
    """One random deletion, insertion, substitution and swap of neighbours."""
    i = rng.randrange(len(word))
    letter = rng.choice(string.ascii_lowercase)
    j = rng.randrange(len(word) - 1)
    swapped = word[:j] + word[j + 1] + word[j] + word[j + 2 :]
    return [word[:i] + word[i + 1 :], word[:i] + letter + word[i:], word[:i] + letter + word[i + 1 :], swapped]


@pytest.mark.parametrize("schema", [SCHEMA, EFFICIENT_ZERO], ids=["PPO", "EfficientZero"])
def test_one_edit_typos_find_their_key(schema: KeySchema) -> None:
    rng = random.Random(0)
    names = sorted(schema.names)
    pairs = [(typo, name) for name in rng.sample(names, 100) if len(name) > 1 for typo in one_edit_typos(name, rng)]
    pairs = [(typo, name) for typo, name in pairs if typo not in schema.names]
    found = sum(nearest(typo, names) == name for typo, name in pairs)
    assert len(pairs) > 300
    assert found / len(pairs) >= 0.97  # the goal is 0.9; two keys can be one edit apart


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        ("", "", 0),
        ("lr", "lr", 0),
        ("lrr", "lr", 1),
        ("rl", "lr", 1),
        ("gama", "gamma", 1),
        ("ab", "cd", 2),
        ("a", "", 1),
    ],
)
def test_edit_distance(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == edit_distance(second, first) == distance


def test_nearest_of_something_else_is_nothing() -> None:
    assert nearest("completely_different_thing", SCHEMA.names) is None


def test_groups_and_flat_keys_are_merged() -> None:
    config = {"env_runners": {"num_env_runners": 2}, "lr": 0.1, "framework": "torch"}
    assert resolve_config(config, SCHEMA).config == {"num_env_runners": 2, "lr": 0.1, "framework": "torch"}


def test_strangers_in_groups_and_contradictions_are_refused() -> None:
    with pytest.raises(UnknownKeyError, match="did you mean 'explore'") as caught:
        resolve_config({"env_runners": {"explor": True}}, SCHEMA)
    assert caught.value.path == ("env_runners", "explor")
    with pytest.raises(ConfigError, match="given twice"):
        resolve_config({"explore": False, "env_runners": {"explore": True}}, SCHEMA)
    assert resolve_config({"explore": True, "env_runners": {"explore": True}}, SCHEMA).config == {"explore": True}


def test_check_known_keys_names_the_nearest() -> None:
    check_known_keys({"lr": 1, "__trial_info__": 1, "_model_config": {}}, {"lr"})
    with pytest.raises(UnknownKeyError, match="'lrr' in config; did you mean 'lr'"):
        check_known_keys({"lrr": 1}, {"lr", "gamma"})
    with pytest.raises(UnknownKeyError):
        check_known_keys({"_model_config": 1}, {"lr"}, private=False)


@pytest.mark.parametrize(
    ("value", "types", "expected"),
    [
        ("1e-4", "float", 1e-4),
        ("1e5", "int", 100_000),
        (1, "float", 1.0),
        (2.0, "int", 2),
        (3, "float|int", 3),
        ("auto", "int|str", "auto"),
        (None, "int", None),
        ("pkg.mod.Class", "class", "pkg.mod.Class"),
        ([[0, 0.1], [10, 0.01]], "float|list", [[0, 0.1], [10, 0.01]]),
        ({"grid_search": ["1e-3", 1]}, "float", {"grid_search": [1e-3, 1.0]}),
        (object, "any", object),
    ],
)
def test_values_become_their_keys_type(value: object, types: str, expected: object) -> None:
    result = normalise_value("key", value, types)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "types"),
    [
        ("1e-4", "int"),
        (True, "int"),
        (1, "bool"),
        ("torch", "bool"),
        ([1], "int"),
        ({}, "float"),
        ("x", "class"),
        (1, "str"),
    ],
)
def test_values_of_another_type_are_refused(value: object, types: str) -> None:
    with pytest.raises(WrongTypeError, match="'key' must be"):
        normalise_value("key", value, types)


def test_atari_gets_its_module() -> None:
    assert normalise_env("ALE/Pong-v5") == "ale_py:ALE/Pong-v5"
    assert normalise_env("ale_py:ALE/Pong-v5") == "ale_py:ALE/Pong-v5"
    assert normalise_env("CartPole-v1") == "CartPole-v1"


def test_resolve_routes_groups_aliases_and_old_names() -> None:
    config = {
        "num_workers": 3,
        "environment": {"env": "ALE/Pong-v5"},
        "rl_module": {"model_config": {"fcnet_hiddens": [8]}},
        "training": {"lambda_": 0.9, "lr": "3e-4"},
        "callbacks": {"on_episode_end": "pkg.mod.function"},
        "framework": "torch",
    }
    resolved = resolve_config(config, SCHEMA)
    assert resolved.config == {
        "num_env_runners": 3,
        "env": "ale_py:ALE/Pong-v5",
        "_model_config": {"fcnet_hiddens": [8]},
        "lambda": 0.9,
        "lr": 3e-4,
        "callbacks_on_episode_end": "pkg.mod.function",
        "framework": "torch",
    }
    assert resolved.warnings == ["'num_workers' is now called 'num_env_runners'"]
    assert resolved.origins["_model_config"] == ("rl_module", "model_config")


def test_multi_agent_keys_go_where_rllib_reads_them() -> None:
    flat = resolve_config({"multi_agent": {"policies": ["a"]}, "policies_to_train": ["a"]}, SCHEMA).config
    assert flat == {"multiagent": {"policies": ["a"], "policies_to_train": ["a"]}}


def test_error_paths_lead_into_nested_configs() -> None:
    with pytest.raises(UnknownKeyError) as caught:
        resolve_config({"evaluation": {"evaluation_config": {"env_runners": {"explor": 1}}}}, SCHEMA)
    assert caught.value.path == ("evaluation", "evaluation_config", "env_runners", "explor")
