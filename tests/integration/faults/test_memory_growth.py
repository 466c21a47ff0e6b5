"""A process that goes on for long does not grow."""

from __future__ import annotations

import gc
import os
import pathlib
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import ray
import torch
from checkpoint_helpers import tiny_config

from rllib_efficientzero.mcts import SearchConfig, Searcher
from rllib_efficientzero.models import ModelConfig, build_network

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    gc.collect()
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
    config.reporting(min_sample_timesteps_per_iteration=2000)
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


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_object_store_does_not_fill(shared_ray: None, measured: Callable[[str], None]) -> None:
    """Episodes and weights that travel between processes are freed."""
    config = tiny_config("CartPole-v1", num_env_runners=1).training(num_simulations=2, replay_ratio=0.02)
    config.env_runners(num_envs_per_env_runner=16, rollout_fragment_length=20)
    algo: Any = config.build_algo()
    free: list[float] = []
    for _ in range(60):
        algo.train()
        free.append(ray.available_resources()["object_store_memory"])
    algo.stop()
    total = ray.cluster_resources()["object_store_memory"]
    measured(
        f"object store in use: {1 - free[10] / total:.3%} after 10 iterations, {1 - free[-1] / total:.3%} after 60"
    )
    assert free[-1] > free[10] - 0.05 * total
