"""A run is a function of its config and seed."""

from __future__ import annotations

import collections
import itertools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from checkpoint_helpers import assert_equal, fingerprint, tiny_config, train
from ray.rllib.algorithms.algorithm import Algorithm
from tiny_pixels import TinyPixels

from rllib_efficientzero import EfficientZero, EfficientZeroConfig
from rllib_efficientzero.env.env_runner import EfficientZeroEnvRunner

pytestmark = pytest.mark.usefixtures("shared_ray")


class SharedGenerator(TinyPixels):
    """Draws from numpy's global generator, as environments do that were written without seeds in mind."""

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward + np.random.random(), terminated, truncated, info  # noqa: NPY002


def run(config: EfficientZeroConfig, iterations: int) -> dict[str, str]:
    algo: Any = train(config.build_algo(), iterations)
    found = fingerprint(algo)
    algo.stop()
    return found


def test_equal_seeds_and_others(measured: Callable[[str], None]) -> None:
    # 12 updates: target and acting weights have been copied.
    runs = [run(tiny_config(seed=seed), 8) for seed in range(10)]
    assert_equal(run(tiny_config(seed=3), 8), runs[3])
    for part in ("weights", "replay", "replay generator", "runner environment generators"):
        assert len({found[part] for found in runs}) == 10, part
    measured("10 seeds: 10 different hashes of weights, replay and generators; the same seed again: all hashes equal")


@pytest.mark.long
@pytest.mark.parametrize("num_env_runners", [0, 4])
def test_equal_after_2000_steps(measured: Callable[[str], None], num_env_runners: int) -> None:
    def config() -> EfficientZeroConfig:
        return tiny_config(num_env_runners=num_env_runners).env_runners(num_cpus_per_env_runner=0.1)

    iterations = 2000 // (10 * max(1, num_env_runners))
    first = run(config(), iterations)
    assert_equal(run(config(), iterations), first)
    measured(f"2000 steps twice with {num_env_runners} remote runners: {len(first)} hashes equal")


@pytest.mark.parametrize("env", [TinyPixels, SharedGenerator])
def test_evaluation_does_not_disturb_training(env: type) -> None:
    evaluated = tiny_config(env).evaluation(evaluation_interval=3, evaluation_duration=3)
    found = run(evaluated, 10)
    expected = run(tiny_config(env), 10)
    assert_equal({name: found[name] for name in expected}, expected)


def test_all_environments_of_a_run_are_seeded_differently() -> None:
    """In training and evaluation, of 64 runners with 16 environments each, also after a failure."""
    for seed in range(5):
        config = types.SimpleNamespace(seed=seed, in_evaluation=False)
        seeds: list[int] = []
        for worker, evaluation, generation in itertools.product(range(65), (False, True), (0, 1)):
            config.in_evaluation = evaluation
            runner = types.SimpleNamespace(config=config, worker_index=worker, _generation=generation)
            for name in ("_identity", "_seed_sequence", "_set_env_seed"):
                setattr(runner, name, types.MethodType(getattr(EfficientZeroEnvRunner, name), runner))
            runner._set_env_seed()
            # A vector environment adds each environment's index.
            seeds += range(runner._seed, runner._seed + 16)
        assert len(set(seeds)) == len(seeds)


def test_who_comes_back_is_seeded_like_nobody_before_also_after_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several times without a step in between, and in a process that has not counted those before it."""

    def restore(self: Any, group: Any) -> list[int]:
        self._counters["total_num_restored_workers"] += 1
        return [1]

    monkeypatch.setattr(Algorithm, "restore_env_runners", restore)
    generations: list[int] = []
    runner = types.SimpleNamespace(begin_generation=generations.append)
    group = types.SimpleNamespace(foreach_env_runner=lambda function, **kwargs: function(runner))
    for steps_when_restored in ([8, 8, 9], [10, 11], [12]):
        algo = EfficientZero.__new__(EfficientZero)
        algo._counters = collections.Counter()
        for algo.num_interactions in steps_when_restored:
            algo.restore_env_runners(group)
    assert len(set(generations)) == len(generations) == 6
