"""Which settings a resumed run is told to have changed: each that is ignored, and no other."""

from __future__ import annotations

import json
import pathlib
import textwrap
from typing import Any

import pytest
import ray
import yaml
from ray.tune.utils.serialization import TuneFunctionDecoder, TuneFunctionEncoder

from rllib_efficientzero.cli.algorithms import Prepared, _variants, prepare
from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.cli.experiment import Overrides, load_experiments
from rllib_efficientzero.cli.python_source import load_python_experiment
from rllib_efficientzero.cli.settings import changed_settings

EXAMPLES = pathlib.Path(__file__).parents[3] / "tuned_examples"

PYTHON_FILE = """
    import functools
    import numpy as np
    from ray import tune
    from ray.rllib.callbacks.callbacks import RLlibCallback
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
    from {module} import {algorithm}Config

    class Callback(RLlibCallback):
        pass

    class Opaque:
        pass

    plain = {{"sizes": (1, 2), "names": {{"a", "b"}}, "scale": np.float32(0.1)}}
    config = (
        {algorithm}Config()
        .environment("CartPole-v1", env_config={{**plain, "object": Opaque(), "function": functools.partial(Opaque)}})
        .callbacks(Callback)
        .training(lr=tune.loguniform(1e-4, 1e-2))
        .multi_agent(policies_to_train=lambda *arguments: True)
    )
"""


def saved_by_tune(config: dict[str, Any]) -> dict[str, Any]:
    """A config as it comes back from the disk."""
    text = json.dumps(config, cls=TuneFunctionEncoder)
    return json.loads(text, cls=TuneFunctionDecoder, allow_cloudpickle=True)


def prepared_with(directory: pathlib.Path, config: dict[str, Any], run: str = "EfficientZero", **keys: Any) -> Prepared:
    file = directory / "x.yaml"
    file.write_text(yaml.safe_dump({"x": {"run": run, "env": "CartPole-v1", **keys, "config": config}}))
    (experiment,) = load_experiments(file, Overrides())
    return prepare(experiment)


@pytest.mark.parametrize(
    ("then", "now", "changed"),
    [
        ({"num_simulations": 8, "seed": 1}, {"num_simulations": 9, "seed": 1}, ["num_simulations"]),
        ({"total_updates": None}, {"total_updates": 200_000}, ["total_updates"]),
        ({"grad_clip": 3.0}, {"grad_clip": None}, ["grad_clip"]),
        ({"temperature_schedule": [[0, 1.0]]}, {"temperature_schedule": [[0, 0.5]]}, ["temperature_schedule"]),
        ({"optimizer": {"type": "sgd", "momentum": 0.9}}, {"optimizer": {"type": "sgd"}}, ["optimizer/momentum"]),
        ({"replay_buffer_config": {"capacity": 9000}}, {}, ["replay_buffer_config/capacity"]),
        ({"env_config": {"a": {"b": 1, "c": 2}}}, {"env_config": {"a": {"b": 3, "c": 2}}}, ["env_config/a/b"]),
        ({}, {"env_config": {"a": None}}, ["env_config/a"]),
        ({"model_config": {"latent_size": 16}}, {"model_config": {"latent_size": 8}}, ["model_config/latent_size"]),
        ({"gamma": 0.9, "td_steps": 3, "lr": 0.1}, {"lr": 0.1}, ["gamma", "td_steps"]),
        ({"lr": 0.1}, {"lr": {"uniform": [0.2, 0.3]}}, []),
        ({"lr": 0.1, "env_config": {"a": 1}}, {"lr": 0.1, "env_config": {"a": 1}}, []),
        # What is left out is the default, and defaults may be written down.
        ({"unroll_steps": 5, "replay_buffer_config": {"alpha": 0.6}}, {}, []),
        ({}, {"temperature_schedule": [[0, 1], [50_000, 0.5], [75_000, 0.25]]}, []),
        ({"training": {"td_steps": 3}}, {"td_steps": 3}, []),
    ],
)
def test_changes_are_named(
    tmp_path: pathlib.Path, then: dict[str, Any], now: dict[str, Any], changed: list[str]
) -> None:
    saved = saved_by_tune(prepared_with(tmp_path, then).param_space)
    assert changed_settings(prepared_with(tmp_path, now), [saved]) == changed


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*-ez*.yaml")), ids=lambda file: file.stem)
def test_an_example_has_not_changed(file: pathlib.Path) -> None:
    ray.shutdown()  # A session of other tests may not have the GPU that some ask for.
    (experiment,) = load_experiments(file, Overrides())
    prepared = prepare(experiment)
    assert changed_settings(prepared, [saved_by_tune(variant) for variant in _variants(prepared.param_space)]) == []


@pytest.mark.parametrize(
    ("module", "algorithm"), [("rllib_efficientzero", "EfficientZero"), ("ray.rllib.algorithms.ppo", "PPO")]
)
def test_a_python_file_has_not_changed(tmp_path: pathlib.Path, module: str, algorithm: str) -> None:
    """It comes with all of RLlib's defaults, and objects of its own are others each time it is run."""
    file = tmp_path / "x.py"
    file.write_text(textwrap.dedent(PYTHON_FILE.format(module=module, algorithm=algorithm)))
    (variant,) = _variants(prepare(load_python_experiment(file, Overrides())).param_space)
    again = prepare(load_python_experiment(file, Overrides(config={"grad_clip": 7})))
    assert changed_settings(again, [saved_by_tune(variant)]) == ["grad_clip"]


def test_what_a_search_drew_has_not_changed(tmp_path: pathlib.Path) -> None:
    config = {"lr": {"choice": [0.1, 0.2]}, "env_config": {"a": {"grid_search": [1, 2]}, "b": 3}}
    prepared = prepared_with(tmp_path, config, num_samples=2)
    saved = [saved_by_tune(variant) for variant in _variants(prepared.param_space)]
    assert len(saved) == 2
    assert changed_settings(prepared, saved) == []
    config = {"lr": 0.1, "env_config": {"a": {"grid_search": [1, 2]}, "b": 4}}
    assert changed_settings(prepared_with(tmp_path, config), [{**trial, "lr": 0.2} for trial in saved]) == [
        "env_config/b",
        "lr",
    ]


def test_what_a_scheduler_mutated_has_not_changed(tmp_path: pathlib.Path) -> None:
    scheduler = {"name": "pbt", "hyperparam_mutations": {"lr": [0.1, 0.2], "td_steps": [3, 4]}}
    prepared = prepared_with(tmp_path, {"lr": 0.1, "gamma": 0.9}, scheduler=scheduler)
    saved = saved_by_tune({**prepared.param_space, "lr": 0.12, "td_steps": 4})
    assert changed_settings(prepared, [saved]) == []


def test_what_a_scheduler_mutated_inside_of_a_setting_has_not_changed(tmp_path: pathlib.Path) -> None:
    scheduler = {"name": "pbt", "hyperparam_mutations": {"env_config": {"a": [1, 2]}}}
    then = prepared_with(tmp_path, {"env_config": {"a": 1, "b": 3}}, scheduler=scheduler).param_space
    saved = saved_by_tune({**then, "env_config": {"a": 2, "b": 3}})
    now = prepared_with(tmp_path, {"env_config": {"a": 1, "b": 4}}, scheduler=scheduler)
    assert changed_settings(now, [saved]) == ["env_config/b"]


def test_a_saved_config_that_is_refused_by_now_is_a_sentence(tmp_path: pathlib.Path) -> None:
    prepared = prepared_with(tmp_path, {})
    with pytest.raises(InputError, match=r"the run in .*/x cannot go on: unknown key 'num_sims'"):
        changed_settings(prepared, [{"env": "CartPole-v1", "num_sims": 3}])
