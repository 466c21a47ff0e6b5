"""What a run cannot do without, killed in mid-run: Tune goes on from the last checkpoint, and the run ends where it
would have (T4)."""

from __future__ import annotations

import os
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import ray
from ray import tune

from rllib_efficientzero import EfficientZero, EfficientZeroConfig
from rllib_efficientzero.efficientzero_learner import EfficientZeroLearner
from tests.integration.scale_helpers import tiny_config

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


class LosesItsReplay(EfficientZero):
    """Kills the process of its replay, unless a file says that it has before."""

    def training_step(self) -> None:
        marker = pathlib.Path(self.config.learner_config_dict["marker"])
        if self.num_updates >= FATAL_UPDATE and not marker.exists():
            marker.touch()
            os.kill(ray.get(self.local_replay_buffer._actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
        super().training_step()


pytestmark = pytest.mark.usefixtures("shared_ray")


@pytest.fixture
def marker(tmp_path: pathlib.Path) -> pathlib.Path:
    """The file that says that what was to fail once has failed."""
    return tmp_path / "has failed"


def config(marker: pathlib.Path, how: str, num_learners: int, **training: Any) -> EfficientZeroConfig:
    settings = {"marker": str(marker), "how": how}
    algo_config = tiny_config(total_env_steps=STEPS, **training)
    return algo_config.learners(num_learners=num_learners, learner_class=FailsOnce, learner_config_dict=settings)


def fit(algorithm: type[EfficientZero], space: EfficientZeroConfig, path: pathlib.Path) -> dict[str, Any]:
    """Metrics at the end of a run with a checkpoint after every other iteration, and at most one failure."""
    run_config = tune.RunConfig(
        storage_path=str(path),
        stop={"training_done": 1},
        failure_config=tune.FailureConfig(max_failures=1),
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=2),
        verbose=0,
    )
    (result,) = tune.Tuner(algorithm, param_space=space, run_config=run_config).fit()
    assert result.error is None
    return result.metrics


def assert_ended_as_if_nothing_had_happened(metrics: dict[str, Any], marker: pathlib.Path) -> None:
    """From a checkpoint of before the failure, the run is repeated step by step."""
    assert marker.exists(), "nothing failed"
    undisturbed = config(marker, "not at all", num_learners=0).build_algo()
    while not (expected := undisturbed.train())["training_done"]:
        pass
    undisturbed.stop()
    for counter in ("num_interactions_lifetime", "num_updates_lifetime", "training_iteration"):
        assert metrics[counter] == expected[counter], counter


@pytest.mark.long
@pytest.mark.parametrize("how", ["killed", "raised"])
def test_the_learner_dies(how: str, marker: pathlib.Path, measured: Callable[[str], None]) -> None:
    metrics = fit(EfficientZero, config(marker, how, num_learners=1), marker.parent / "failing")
    assert_ended_as_if_nothing_had_happened(metrics, marker)
    measured(f"the same {metrics['num_interactions_lifetime']} steps and {metrics['num_updates_lifetime']} updates")


@pytest.mark.long
def test_the_replay_dies(marker: pathlib.Path, measured: Callable[[str], None]) -> None:
    """What it held comes back with the checkpoint."""
    lost = config(marker, "not at all", num_learners=0, replay_buffer_config={"placement": "actor"})
    metrics = fit(LosesItsReplay, lost, marker.parent / "failing")
    assert_ended_as_if_nothing_had_happened(metrics, marker)
    assert metrics["replay_buffer"]["num_positions"] == metrics["num_interactions_lifetime"]
    measured(f"the same {metrics['num_interactions_lifetime']} steps and {metrics['num_updates_lifetime']} updates")


@pytest.mark.long
def test_one_of_two_learners_dies(marker: pathlib.Path, measured: Callable[[str], None]) -> None:
    """The other must not wait for its gradients for ever."""
    started = time.monotonic()
    metrics = fit(EfficientZero, config(marker, "killed", num_learners=2), marker.parent / "failing")
    assert_ended_as_if_nothing_had_happened(metrics, marker)
    measured(f"both runs together took {time.monotonic() - started:.0f} s")
