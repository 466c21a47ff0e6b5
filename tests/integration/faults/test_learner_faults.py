"""Learners that die in mid-update: Tune goes on from the last checkpoint, and the run ends where it would have (T4)."""

from __future__ import annotations

import os
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray import tune

from rllib_efficientzero import EfficientZero, EfficientZeroConfig
from rllib_efficientzero.efficientzero_learner import EfficientZeroLearner
from tests.integration.scale_helpers import start_ray, tiny_config

STEPS, FATAL_UPDATE = 240, 33


class FailsOnce(EfficientZeroLearner):
    """Fails at an update, unless a file says that it has before."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        settings = self.config.learner_config_dict
        marker = pathlib.Path(settings["marker"])
        if int(self._unwrapped("default_policy").num_updates) >= FATAL_UPDATE and not marker.exists():
            marker.touch()
            if settings["how"] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise MemoryError("as if there were none left")
        return super().update(*args, **kwargs)


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    start_ray()
    yield
    ray.shutdown()


def config(num_learners: int) -> EfficientZeroConfig:
    return tiny_config(total_env_steps=STEPS).learners(num_learners=num_learners)


def fit(space: EfficientZeroConfig, path: pathlib.Path) -> Any:
    run_config = tune.RunConfig(
        storage_path=str(path),
        stop={"training_done": 1},
        failure_config=tune.FailureConfig(max_failures=1),
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=2),
        verbose=0,
    )
    (result,) = tune.Tuner(EfficientZero, param_space=space, run_config=run_config).fit()
    return result


@pytest.mark.parametrize("how", ["killed", pytest.param("raised", marks=pytest.mark.long)])
def test_the_run_ends_with_the_same_budget(how: str, tmp_path: pathlib.Path) -> None:
    marker = tmp_path / "has failed"
    failing = config(num_learners=1).training(
        learner_class=FailsOnce, learner_config_dict={"marker": str(marker), "how": how}
    )
    result = fit(failing, tmp_path / "failing")
    assert marker.exists()
    assert result.error is None
    assert result.metrics["num_updates_lifetime"] == int(0.25 * result.metrics["num_interactions_lifetime"])
    # From checkpoints after every other iteration of 32 steps, the run is repeated step by step.
    undisturbed = config(num_learners=0).build_algo()
    while not (expected := undisturbed.train())["training_done"]:
        pass
    undisturbed.stop()
    for counter in ("num_interactions_lifetime", "num_updates_lifetime", "training_iteration"):
        assert result.metrics[counter] == expected[counter], counter


@pytest.mark.long
def test_one_of_two_learners_dies(tmp_path: pathlib.Path) -> None:
    """The other must not wait for its gradients for ever."""
    marker = tmp_path / "has failed"
    failing = config(num_learners=2).training(
        learner_class=FailsOnce, learner_config_dict={"marker": str(marker), "how": "killed"}
    )
    result = fit(failing, tmp_path / "failing")
    assert marker.exists()
    assert result.error is None
    assert result.metrics["training_done"] == 1
    assert result.metrics["num_interactions_lifetime"] <= STEPS
