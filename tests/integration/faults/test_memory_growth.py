"""A process that goes on for long does not grow."""

from __future__ import annotations

import ctypes
import gc
import os
import pathlib
import tracemalloc
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from checkpoint_helpers import tiny_config

from rllib_efficientzero.mcts import SearchConfig, Searcher
from rllib_efficientzero.models import ModelConfig, build_network

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Of this process, without what is free: what tests before have freed could hide a leak."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def test_searches_leave_nothing_behind(measured: Callable[[str], None]) -> None:
    """1,000 searches of changing batch sizes, so that buffers are made and dropped."""
    torch.manual_seed(0)
    network = build_network((2, 4), 3, ModelConfig(latent_size=8, mlp_hidden=(8,), head_hidden=(8,), lstm_hidden=8))
    network.eval()
    searcher = Searcher(SearchConfig(num_simulations=8))
    rng = np.random.default_rng(0)

    def search(times: int) -> None:
        for i in range(times):
            with torch.inference_mode():
                root = network.initial_inference(torch.randn(1 + i % 7, 8))
            searcher.search(network, root, rng=rng, explore=True, temperature=1.0)

    search(200)
    before = resident_bytes()
    tracemalloc.start()
    search(20)
    traced_before, _ = tracemalloc.get_traced_memory()
    search(1000)
    gc.collect()
    traced_after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    growth = resident_bytes() / before - 1
    measured(f"1000 searches: {traced_after - traced_before} bytes of Python objects more, RSS {growth:+.2%}")
    assert traced_after - traced_before < 50_000
    assert growth < 0.02


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_training_does_not_grow(shared_ray: None, measured: Callable[[str], None]) -> None:
    """200,000 steps; the replay is full after 20,000, and is measured from 40,000 on."""
    config = tiny_config("CartPole-v1").training(
        num_simulations=2,
        replay_ratio=0.02,
        total_env_steps=10**6,
        num_steps_sampled_before_learning_starts=1000,
        replay_buffer_config={"capacity": 20_000},
    )
    config.env_runners(num_envs_per_env_runner=16, rollout_fragment_length=20)
    config.reporting(min_time_s_per_iteration=1)
    algo: Any = config.build_algo()
    sizes: list[tuple[int, int]] = []
    while algo.num_interactions < 200_000:
        algo.train()
        if algo.num_interactions >= 40_000:
            sizes.append((algo.num_interactions, resident_bytes()))
    algo.stop()
    early = np.median([size for steps, size in sizes if steps < 60_000])
    late = np.median([size for steps, size in sizes if steps >= 180_000])
    measured(
        f"RSS at 40-60k steps {early / 2**20:.1f} MiB, at 180-200k {late / 2**20:.1f} MiB: {late / early - 1:+.2%}"
    )
    assert late < 1.02 * early


class LargeObservations(gym.Env):
    """Observations of 8 kB each, so that what travels with them goes through the object store."""

    observation_space = gym.spaces.Box(0.0, 1.0, (2000,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, config: Any = None) -> None:
        self.time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        return self._observation(), 1.0, self.time == 30, False, {}

    def _observation(self) -> np.ndarray:
        return self.np_random.random(2000, np.float32)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_object_store_does_not_fill(shared_ray: None, measured: Callable[[str], None]) -> None:
    """Episodes, batches and weights that travel between processes are freed."""
    config = tiny_config(LargeObservations, num_env_runners=1).training(num_simulations=2, replay_ratio=0.02)
    config.env_runners(num_envs_per_env_runner=16, rollout_fragment_length=20).reanalyze(num_actors=1)
    algo: Any = config.build_algo()
    total = ray.cluster_resources()["object_store_memory"]
    used: list[float] = []
    for _ in range(60):
        algo.train()
        used.append(total - ray.available_resources()["object_store_memory"])
    travelled = algo.num_interactions * LargeObservations.observation_space.shape[0] * 4
    algo.stop()
    early, late = max(used[10:20]), max(used[-10:])
    measured(
        f"object store in use: {early / 2**20:.1f} MiB at most after 10 to 20 iterations, {late / 2**20:.1f} MiB after "
        f"50 to 60, by when {travelled / 2**20:.0f} MiB of observations had travelled"
    )
    assert early > 0
    assert late - early < 0.05 * travelled
