"""Asynchronous self-play: nobody waits, and the promises of the synchronous mode hold but for its order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import pytest
import ray
from scale_helpers import tiny_config, train_until

from rllib_efficientzero import EfficientZero, EfficientZeroConfig


class SlowForSome(gym.Wrapper):
    """CartPole that takes its time in the EnvRunner whose number it is told."""

    def __init__(self, config: Any) -> None:
        super().__init__(gym.make("CartPole-v1"))
        self._seconds = config["seconds"] if config.worker_index == config["slow_runner"] else 0.0

    def step(self, action: Any) -> Any:
        time.sleep(self._seconds)
        return self.env.step(action)


pytestmark = pytest.mark.usefixtures("shared_ray")


def asynchronous(**training: Any) -> EfficientZeroConfig:
    return tiny_config(**training).env_runners(num_env_runners=2, num_envs_per_env_runner=2, sample_asynchronously=True)


def test_ratio_and_budget_are_exact_and_staleness_is_bounded() -> None:
    """One runner is much slower than the other; the learner waits for it rather than to learn from old play."""
    config = asynchronous(total_env_steps=400, replay_ratio=0.5)
    config.environment(SlowForSome, env_config={"slow_runner": 2, "seconds": 0.05})
    algo = config.build_algo()
    bound = algo.config.sample_staleness_bound()
    assert bound == 5 + 2 * 18  # self_play_update_freq, and twice the updates that 2 x 2 x (8 + 1) steps owe
    staleness = []
    sample = algo.self_play.sample

    def recorded(*args: Any, **kwargs: Any) -> Any:
        samples = sample(*args, **kwargs)
        staleness.extend((one.worker_index, one.staleness) for one in samples)
        return samples

    algo.self_play.sample = recorded
    while not (result := algo.train())["training_done"]:
        assert result["num_updates_lifetime"] <= 0.5 * result["num_interactions_lifetime"]
    assert 397 <= result["num_interactions_lifetime"] <= 400
    assert result["num_updates_lifetime"] == 200
    assert result["num_interactions_lifetime"] == algo.local_replay_buffer.num_added
    counts = {index: sum(1 for worker, _ in staleness if worker == index) for index in (1, 2)}
    assert counts[1] > counts[2] > 0, "the fast runner waits for the slow one"
    assert 0 < max(updates for _, updates in staleness) <= bound
    algo.stop()


@pytest.fixture(scope="module")
def algo(shared_ray: None) -> Iterator[EfficientZero]:
    """A run that the two tests below go on with: each of its processes takes seconds to start."""
    algorithm = asynchronous(total_env_steps=10_000).build_algo()
    yield algorithm
    algorithm.stop()


def test_newest_weights_reach_the_runners(algo: EfficientZero) -> None:
    result = train_until(algo, lambda result: result["num_updates_lifetime"] >= 40)
    assert result["env_runners"]["sample_staleness"]["max"] <= algo.config.sample_staleness_bound()
    algo.self_play._collect(list(algo.self_play._requests), algo.num_updates, wait_for_all=True)
    algo._sample(8)
    acting = algo.env_runner_group.foreach_env_runner(
        lambda runner: int(runner.module.num_updates), local_env_runner=False
    )
    published = algo.num_updates - algo.num_updates % algo.config.self_play_update_freq
    assert acting == [published, published]


def test_a_runner_that_dies_is_replaced(algo: EfficientZero) -> None:
    train_until(algo, lambda result: result["num_updates_lifetime"] >= 5)
    ray.kill(algo.env_runner_group._worker_manager.actors()[1], no_restart=False)
    result = train_until(algo, lambda result: result["fault_tolerance"]["num_remote_worker_restarts"] == 1)
    before = result["num_interactions_lifetime"]
    heard: set[int] = set()
    sample = algo.self_play.sample
    algo.self_play.sample = lambda *args, **kwargs: [
        heard.add(one.worker_index) or one for one in sample(*args, **kwargs)
    ]
    train_until(algo, lambda result: result["num_interactions_lifetime"] > before and heard == {1, 2})


def test_a_runner_that_hangs_is_replaced() -> None:
    config = asynchronous(total_env_steps=10_000).env_runners(sample_timeout_s=2)
    config.environment(SlowForSome, env_config={"slow_runner": 2, "seconds": 3600})
    config.fault_tolerance(max_num_env_runner_restarts=1000)
    algo = config.build_algo()
    # The other one does not wait.
    train_until(algo, lambda result: result["num_interactions_lifetime"] > 50, timeout_s=6)
    train_until(algo, lambda result: result["fault_tolerance"]["num_remote_worker_restarts"] >= 1)
    algo.stop()
