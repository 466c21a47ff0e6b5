"""Asynchronous self-play: nobody waits, and the promises of the synchronous mode hold but for its order."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import pytest
import ray
from scale_helpers import tiny_config, train_until

from rllib_efficientzero import EfficientZero, EfficientZeroConfig
from rllib_efficientzero.actors import self_play
from rllib_efficientzero.actors.self_play import AsynchronousSelfPlay
from rllib_efficientzero.env import sampling
from rllib_efficientzero.env.sampling import NoEnvRunnersError, Sample


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
    """A run that the three tests below go on with: each of its processes takes seconds to start."""
    algorithm = asynchronous(total_env_steps=10_000).build_algo()
    yield algorithm
    algorithm.stop()


def test_what_is_on_its_way_is_in_the_checkpoint(
    algo: EfficientZero, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The EnvRunners go on from where they are then: of what was not stored, an episode would miss a piece."""
    train_until(algo, lambda result: result["num_updates_lifetime"] >= 5)
    before = algo.num_interactions
    assert len(algo.self_play._requests) == 2
    path = algo.save_to_path(tmp_path / "checkpoint")
    saved = algo.num_interactions
    assert before + 2 * 2 * 8 <= saved == algo.local_replay_buffer.num_added
    algo.train()
    algo.restore_from_path(path)
    assert algo.num_interactions == algo.local_replay_buffer.num_added == saved
    result = train_until(algo, lambda result: result["num_interactions_lifetime"] > saved + 64)
    assert result["env_runners"]["num_env_steps_sampled_lifetime"] == algo.num_interactions
    assert "lost on the way" not in caplog.text


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


@ray.remote(num_cpus=0)
class OneAfterAnother:
    """Stands in for all EnvRunners of a group: fails so many times, then plays, and takes a moment for each answer."""

    def __init__(self, num_failures: int) -> None:
        self._num_failures = num_failures

    def apply(self, play: Any) -> Sample:
        time.sleep(0.1)
        self._num_failures -= 1
        return Sample(0, error=RuntimeError("no simulator") if self._num_failures >= 0 else None)


class Manager:
    """As much of RLlib's as self-play uses, of EnvRunners that are one actor and are never ended."""

    def __init__(self, num_runners: int, num_failures: int) -> None:
        self.indices = range(1, num_runners + 1)
        self._healthy = set(self.indices)
        self._actor = OneAfterAnother.remote(num_failures)

    def actors(self) -> dict[int, Any]:
        return dict.fromkeys(self.indices, self._actor)

    def healthy_actor_ids(self) -> list[int]:
        return sorted(self._healthy)

    def set_actor_state(self, index: int, healthy: bool) -> None:
        (self._healthy.add if healthy else self._healthy.discard)(index)


def play_where_answers_fail(
    num_failures: int, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[list[Sample], int]:
    """The first samples of five such EnvRunners, and how often they were brought back until then."""
    manager = Manager(5, num_failures)
    monkeypatch.setattr(self_play, "end_process", lambda manager, index: manager.set_actor_state(index, healthy=False))
    monkeypatch.setattr(sampling, "SECONDS_BETWEEN_ATTEMPTS", 0.0)
    restored: list[int] = []

    def restore() -> None:
        restored.append(1)
        for index in manager.indices:
            manager.set_actor_state(index, healthy=True)

    learner_group = SimpleNamespace(get_state=lambda **kwargs: {"learner": {"rl_module": None}})
    group = SimpleNamespace(_worker_manager=manager)
    played = AsynchronousSelfPlay(group, asynchronous().env_runners(**settings), learner_group, restore)
    return played.sample(40, budget=1000, num_updates=0), len(restored)


def test_runners_that_fail_one_after_another_fail_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five failures of five EnvRunners are a single one of all of them."""
    samples, num_restored = play_where_answers_fail(4 * 5, monkeypatch)
    assert samples
    assert num_restored == 4
    with pytest.raises(NoEnvRunnersError, match="failed 5 times in a row; EnvRunner 5 failed: no simulator"):
        play_where_answers_fail(5 * 5, monkeypatch)


def test_without_a_limit_nobody_is_taken_to_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, num_restored = play_where_answers_fail(0, monkeypatch, sample_timeout_s=None)
    assert samples
    assert num_restored == 0
