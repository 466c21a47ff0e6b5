"""A checkpoint restored into another config: what that config says holds, or the restore is refused, whole."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow.fs
import pytest
from checkpoint_helpers import assert_equal, fingerprint, tiny_config, train
from tiny_pixels import TinyPixels

from rllib_efficientzero import EfficientZero, EfficientZeroConfig
from rllib_efficientzero.checkpoint import CheckpointError
from rllib_efficientzero.checkpoint.fit import check_description
from rllib_efficientzero.checkpoint.manifest import verify
from rllib_efficientzero.env import env_state, runner_state


class Scaled(TinyPixels):
    """Every step's reward, and how long episodes are, is in the settings."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.reward, self.length = config["reward"], config["length"]

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, *_ = super().step(action)
        return observation, self.reward, self.time >= self.length, False, {}


def scaled(reward: float = 1.0, length: int = 10) -> EfficientZeroConfig:
    return tiny_config().environment(Scaled, env_config={"reward": reward, "length": length})


@pytest.fixture(scope="module")
def saved(shared_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    algo: Any = train(scaled().build_algo(), 8)
    yield pathlib.Path(algo.save_to_path(tmp_path_factory.mktemp("saved") / "checkpoint"))
    algo.stop()


def test_other_settings_of_the_environment_hold(saved: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """As for fine-tuning; the episodes in progress are those of other environments, and begin anew."""
    algo: Any = scaled(reward=100.0, length=5).build_algo()
    caplog.set_level(logging.WARNING)
    algo.restore_from_path(saved)
    assert "env_config['reward'] was 1.0 and is 100.0; env_config['length'] was 10 and is 5" in caplog.text
    known = set(algo.local_replay_buffer._episodes)
    train(algo, 3)
    new = [episode for number, episode in algo.local_replay_buffer._episodes.items() if number not in known]
    assert len(new) >= 4
    assert {float(reward) for episode in new for reward in episode.column("rewards")} == {100.0}
    assert max(len(episode) for episode in new) == 5
    algo.stop()


def test_states_without_settings_go_on(saved: pathlib.Path) -> None:
    """Of versions before they were kept: nothing says that the environments are others."""
    algo: Any = train(scaled().build_algo(), 1)
    state = runner_state.capture(algo.env_runner)
    del vars(state)["settings"]
    train(algo, 1)
    runner_state.restore(algo.env_runner, states=[state], generation=0)
    assert not algo.env_runner._needs_initial_reset
    algo.stop()


class Opaque:
    """Has neither a value nor an equality."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.itself = inner, self


def test_settings_are_compared_by_what_they_are() -> None:
    def described(value: Any, vectorize: Any = "sync") -> dict[str, str]:
        config = tiny_config().environment(Scaled, env_config={"value": value})
        return env_state.settings_of(config.env_runners(gym_env_vectorize_mode=vectorize))

    for make in (
        lambda: {"a": [1, (2.5, None)], "b": {"c", "d"}},
        lambda: np.arange(3.0),
        lambda: Opaque(np.ones(2)),
        lambda: Scaled,
        lambda: gym.VectorizeMode.ASYNC,
    ):
        assert described(make()) == described(make())
    assert described(1, "sync") == described(1, gym.VectorizeMode.SYNC)
    assert described(1, "sync") != described(1, "async")
    assert described(Opaque(1)) != described(Opaque(2))
    assert described(np.zeros(3)) != described(np.arange(3.0))
    assert described(Scaled) != described(TinyPixels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": {"type": "adam"}}, "its optimizer is sgd, whose state is of no use to adam"),
        ({"use_consistency": False}, "trained with `use_consistency` True, and this one has False"),
    ],
)
def test_another_learner_is_refused_and_left_as_it_was(
    saved: pathlib.Path, settings: dict[str, Any], message: str
) -> None:
    algo: Any = train(scaled().training(**settings).build_algo(), 2)
    before = fingerprint(algo)
    with pytest.raises(CheckpointError, match=message):
        algo.restore_from_path(saved)
    assert_equal(fingerprint(algo), before)
    algo.stop()


def test_another_number_of_sampled_actions_is_refused() -> None:
    def description(actions: str, number: int) -> dict[str, Any]:
        same = {"observation_space": {}, "model": {}, "action_space": {"type": actions}}
        return same | {"search": {"num_sampled_actions": number}}

    path = pathlib.Path("policy.json")
    check_description(path, description("Discrete", 8), description("Discrete", 4))
    check_description(path, description("Box", 8), description("Box", 8))
    with pytest.raises(
        CheckpointError, match=r"^policy\.json .* its num_sampled_actions is 8, and that of this one is 4"
    ):
        check_description(path, description("Box", 8), description("Box", 4))


def test_a_state_that_cannot_be_set_spares_the_replay(saved: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    algo: Any = train(scaled().build_algo(), 1)
    before = fingerprint(algo)["replay"]

    def fail(state: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(algo, "set_state", fail)
    with pytest.raises(RuntimeError, match=r"^no$"):
        algo.restore_from_path(saved)
    assert fingerprint(algo)["replay"] == before
    algo.stop()


@pytest.mark.parametrize("options", [{"momentum": 0.0, "weight_decay": 0.5}, {"momentum": 0.5, "nesterov": True}])
def test_options_of_the_optimizer_are_the_configs(saved: pathlib.Path, options: dict[str, Any]) -> None:
    algo: Any = scaled().training(optimizer={"type": "sgd", **options}).build_algo()
    algo.restore_from_path(saved)
    before = algo.num_updates
    train(algo, 2)
    assert algo.num_updates > before
    ((_, optimizer),) = algo.learner_group._learner.get_optimizers_for_module("default_policy")
    assert {key: optimizer.param_groups[0][key] for key in options} == options
    assert all("momentum_buffer" in values for values in optimizer.state.values())
    algo.stop()


def test_a_checkpoint_in_a_storage_is_replaced(shared_ray: None, tmp_path: pathlib.Path) -> None:
    """With nothing of the old one left; see `tests/unit/checkpoint/test_remote.py` for interruptions."""
    storage = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    algo: Any = train(scaled().build_algo(), 2)
    for _ in range(2):
        place = algo.save_to_path("trial/checkpoint", filesystem=storage)
        train(algo, 4)
    manifest = verify(tmp_path / place)
    files = {path.relative_to(tmp_path / place).as_posix() for path in (tmp_path / place).rglob("*") if path.is_file()}
    assert files == {*manifest["files"], "manifest.json"}
    resumed: Any = EfficientZero.from_checkpoint(place, filesystem=storage)
    for restored in (resumed, algo):
        restored.restore_from_path(place, filesystem=storage)
        assert restored.num_interactions == manifest["counters"]["num_interactions"]
        restored.save_to_path(tmp_path / "again")
    with pytest.raises(CheckpointError, match=r"^trial holds something that is no checkpoint"):
        algo.save_to_path("trial", filesystem=storage)
    resumed.stop()
    algo.stop()
