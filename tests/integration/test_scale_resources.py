"""What a run asks of a cluster: every process has its place, and what can never be placed is named at once."""

from __future__ import annotations

import pathlib
import time
from typing import Any

import gymnasium as gym
import pytest
import ray
from ray import tune
from scale_helpers import tiny_config

from rllib_efficientzero import EfficientZero, EfficientZeroConfig
from rllib_efficientzero.actors.resources import InsufficientResourcesError, missing_resources, roles

NUM_CPUS = 6
"""Of the shared session."""

pytestmark = pytest.mark.usefixtures("shared_ray")


def everything() -> EfficientZeroConfig:
    """One process of every kind: six CPUs."""
    config = tiny_config(replay_buffer_config={"placement": "actor"})
    config.env_runners(num_env_runners=1).learners(num_learners=1).reanalyze(num_actors=1)
    return config.evaluation(evaluation_interval=2, evaluation_duration=2, evaluation_num_env_runners=1)


def test_every_process_has_a_bundle_and_ours_come_last() -> None:
    config = everything().reanalyze(num_actors=2, num_gpus_per_actor=0.25, num_cpus_per_actor=2)
    config.resources(wait_for_resources=True)
    request = EfficientZero.default_resource_request(config.to_dict())
    assert request.bundles[-3:] == [{"CPU": 1.0}, {"CPU": 2.0, "GPU": 0.25}, {"CPU": 2.0, "GPU": 0.25}]
    names = [role for role, _ in roles(config)]
    assert len(request.bundles) == len(names)
    assert names == [
        *("main process", "EnvRunner", "evaluation EnvRunner", "Learner"),
        *("replay actor", "reanalyze actor", "reanalyze actor"),
    ]


@pytest.mark.parametrize(
    ("asked", "nodes", "said"),
    [
        ([("Learner", {"GPU": 1.0})], [{"CPU": 8.0}], "A Learner asks for 1 GPU on one node, .* more than 0"),
        ([("EnvRunner", {"CPU": 4.0})], [{"CPU": 3.0}, {"CPU": 3.0}], "An EnvRunner asks for 4 CPU on one node, .* 3"),
        (
            [("EnvRunner", {"CPU": 1.0})] * 4 + [("reanalyze actor", {"CPU": 2.0})] * 2,
            [{"CPU": 3.0}, {"CPU": 3.0}],
            r"asks for 8 CPU \(4 EnvRunner x 1, 2 reanalyze actor x 2\) and the cluster has 6: 2 CPU are missing; "
            r"add nodes, or ask for less \(num_env_runners, num_reanalyze_actors\)",
        ),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(asked: list, nodes: list, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(missing_resources(asked, nodes))


def test_what_fits_exactly_is_not_refused() -> None:
    tenths = [("EnvRunner", {"CPU": 1.0, "GPU": 0.1})] * 10
    assert missing_resources(tenths, [{"CPU": 10.0, "GPU": 1.0}]) is None


@pytest.mark.parametrize(
    "config",
    [
        tiny_config().env_runners(num_env_runners=NUM_CPUS + 1),
        tiny_config().reanalyze(num_actors=NUM_CPUS + 1),
        tiny_config().reanalyze(num_actors=1, num_gpus_per_actor=0.5),
        tiny_config().learners(num_learners=2, num_gpus_per_learner=1),
        tiny_config().evaluation(evaluation_interval=1, evaluation_num_env_runners=NUM_CPUS + 1),
    ],
    ids=["runners", "actors", "a GPU", "learners", "evaluation"],
)
def test_a_cluster_that_is_too_small_is_an_error_at_once(config: EfficientZeroConfig, tmp_path: pathlib.Path) -> None:
    """Without Tune as with it; Ray would wait for ever."""
    started = time.monotonic()
    with pytest.raises(InsufficientResourcesError, match="asks for"):
        config.build_algo()
    tuner = tune.Tuner(EfficientZero, param_space=config, run_config=tune.RunConfig(storage_path=str(tmp_path)))
    with pytest.raises(InsufficientResourcesError, match="asks for"):
        tuner.fit()
    assert time.monotonic() - started < 30


def test_a_trial_with_one_process_of_every_kind_fits_into_its_bundles(tmp_path: pathlib.Path) -> None:
    run_config = tune.RunConfig(storage_path=str(tmp_path), stop={"training_iteration": 2}, verbose=0)
    (result,) = tune.Tuner(EfficientZero, param_space=everything(), run_config=run_config).fit()
    assert result.error is None
    assert result.metrics["reanalyze"]["num_actors_in_service"] == 1
    assert result.metrics["num_updates_lifetime"] > 0
    assert len(result.metrics["evaluation"]["env_runners"]["episode_returns"]) == 2


class NoSimulator(gym.Env):
    """An environment that cannot even be made."""

    def __init__(self, config: Any) -> None:
        raise FileNotFoundError("no simulator here")


def test_processes_end_where_the_algorithm_cannot_be_built() -> None:
    """Though the error is held, and with it the algorithm."""
    config = tiny_config(replay_buffer_config={"placement": "actor"}).reanalyze(num_actors=2)
    config.environment(NoSimulator)
    with pytest.raises(Exception, match="no simulator here") as held:
        config.build_algo()
    deadline = time.monotonic() + 10
    while (free := ray.available_resources().get("CPU", 0.0)) < NUM_CPUS and time.monotonic() < deadline:
        time.sleep(0.1)
    assert free == NUM_CPUS, held.type
