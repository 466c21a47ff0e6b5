"""For tests of broken environments and runners: a tiny config, a count of steps taken, a look at the replay."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from scale_helpers import NETWORK

from rllib_efficientzero import EfficientZero, EfficientZeroConfig
from rllib_efficientzero.replay.episode import ACTIONS, POSITIONS, REWARDS, ROOT_VALUE, VISIT_POLICY
from tests.faulty_envs import ScriptedEnv


class CountedEnv(ScriptedEnv):
    """Appends a byte to a file for every step taken, in whichever process; the file's size is their number."""

    def __init__(self, env_config: dict[str, Any]) -> None:
        settings = dict(env_config)
        count_file = settings.pop("count_file", None)
        self.count_file = None if count_file is None else os.open(count_file, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        super().__init__(**settings)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, Any]:
        result = super().step(action)
        if self.count_file is not None:
            os.write(self.count_file, b".")
        return result


def config(env: Callable[[Any], Any] = CountedEnv, *, remote: int = 0, **env_config: Any) -> EfficientZeroConfig:
    """2 environments per runner, fragments of 4 steps each, an update every 8 steps from the 32nd on."""
    return (
        EfficientZeroConfig()
        .environment(env, env_config=env_config)
        .debugging(seed=0, log_level="ERROR", log_sys_usage=False)  # whose thread is waited for, 0.35 s at every end
        .training(
            num_simulations=2,
            frame_stack=2,
            total_env_steps=100_000,
            total_updates=None,
            replay_ratio=0.125,
            num_steps_sampled_before_learning_starts=32,
            train_batch_size_per_learner=8,
            self_play_update_freq=1,
            optimizer={"type": "adam"},
            lr=0.001,
            mixed_precision=False,
        )
        .env_runners(num_env_runners=remote, num_envs_per_env_runner=2, rollout_fragment_length=4)
        .learners(num_gpus_per_learner=0)
        .rl_module(model_config=NETWORK)
    )


def steps_taken(count_file: pathlib.Path) -> int:
    """Of all environments that were given this file."""
    return count_file.stat().st_size


def train_until(algo: EfficientZero, num_steps: int, *, most_iterations: int = 2000) -> dict[str, Any]:
    """Trains until so many steps are stored; the last result."""
    for _ in range(most_iterations):
        result = algo.train()
        if result["num_interactions_lifetime"] >= num_steps:
            return result
    raise AssertionError(f"{result['num_interactions_lifetime']} steps after {most_iterations} iterations")


def assert_replay_is_whole(algo: EfficientZero) -> None:
    """Every stored episode is a piece of one as `ScriptedEnv` plays it, with flags only where it ended; all is finite;
    and the run has counted exactly what is stored."""
    replay = algo.local_replay_buffer
    assert replay.num_added == algo.num_interactions
    assert len(replay) == replay.num_added, "nothing was evicted in these small runs"
    positions: list[int] = []
    for episode in replay._episodes.values():
        columns = {name: episode.column(name) for name in (POSITIONS, ACTIONS, REWARDS, ROOT_VALUE, VISIT_POLICY)}
        assert {len(column) for column in columns.values()} == {len(episode)}
        assert all(np.isfinite(column).all() for column in columns.values())
        np.testing.assert_allclose(columns[VISIT_POLICY].sum(axis=1), 1.0, rtol=1e-5)
        encoded = np.empty((len(episode.frames), episode.codec.nbytes), np.uint8)
        episode.codec.decode(episode.frames, encoded)
        frames = encoded.view(episode.codec.dtype) * 1000
        assert np.isfinite(frames).all()
        assert len(frames) == len(episode) + 1
        # One episode, and its steps without a gap, from where the stored piece begins.
        np.testing.assert_allclose(frames[:, 0], frames[0, 0], atol=1e-3)
        np.testing.assert_allclose(frames[:, 1], episode.t_started + np.arange(len(frames)), atol=1e-3)
        assert not episode.truncated
        assert episode.terminated == (episode.t_started + len(episode) == 20)
        positions += columns[POSITIONS].tolist()
    assert sorted(positions) == list(range(replay.num_added))
