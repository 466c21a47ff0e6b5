"""What a checkpoint costs: the steps that are new since the last one, not all of them."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from checkpoint_helpers import TINY_NETWORK, TINY_TRAINING
from ray import tune

from rllib_efficientzero import EfficientZero
from rllib_efficientzero.checkpoint.manifest import find_newest, read_manifest, verify
from rllib_efficientzero.replay import PrioritizedReplay

STEPS = 50_000
NEW_STEPS = 2_000


class Episode:
    """What the replay reads of RLlib's episodes; 96x96x3 frames that compress to about 1.3 kB, as Breakout's."""

    def __init__(self, number: int, length: int) -> None:
        rng = np.random.default_rng(number)
        self.id_ = str(number)
        self.t_started = 0
        self.is_terminated, self.is_truncated = True, False
        self._frames = np.zeros((length + 1, 96, 96, 3), np.uint8)
        for frame in self._frames:
            frame[:20, :20] = rng.integers(0, 255, (20, 20, 3))
        self._actions = rng.integers(6, size=length)
        self._rewards = rng.normal(size=length).astype(np.float32)
        self._policy = rng.dirichlet(np.ones(6), size=length).astype(np.float32)

    def __len__(self) -> int:
        return len(self._actions)

    def get_observations(self) -> Any:
        return self._frames

    def get_actions(self) -> Any:
        return self._actions

    def get_rewards(self) -> Any:
        return self._rewards

    def get_extra_model_outputs(self, key: str) -> Any:
        return self._rewards if key == "root_value" else self._policy


def new_bytes(directory: pathlib.Path) -> int:
    """Bytes of files that have no other name."""
    return sum(path.stat().st_size for path in directory.iterdir() if path.stat().st_nlink == 1)


def test_saving_costs_what_is_new(tmp_path: pathlib.Path, measured: Callable[[str], None]) -> None:
    replay = PrioritizedReplay(STEPS + NEW_STEPS, frame_stack=4, unroll_steps=5, td_steps=5, seed=0)
    number = 0

    def play(steps: int) -> None:
        nonlocal number
        for _ in range(steps // 500):
            replay.add([Episode(number, 500)])
            number += 1

    play(STEPS)
    costs: list[tuple[float, int]] = []
    for i in range(3):
        started = time.process_time()
        replay.save(tmp_path / str(i), previous=tmp_path / str(i - 1) if i else None)
        seconds = time.process_time() - started
        costs.append((seconds, new_bytes(tmp_path / str(i)) if i else _all_bytes(tmp_path / "0")))
        play(NEW_STEPS)
    for (seconds, size), what in zip(costs, ("first", "after 2,000 more", "after 2,000 more"), strict=True):
        measured(f"replay of {STEPS:,} Atari-like steps, {what}: {size / 2**20:.1f} MiB written, {seconds:.2f} CPU s")
    assert costs[1][1] < 0.25 * costs[0][1]
    assert costs[1][0] < 0.5 * costs[0][0]


def _all_bytes(directory: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def test_links_survive_in_tunes_storage(
    shared_ray: None, tmp_path: pathlib.Path, measured: Callable[[str], None]
) -> None:
    """Tune copies checkpoints from a temporary directory; a local storage gets them in place, with links, and the
    deletion of old ones leaves the new ones whole."""
    space = {
        **TINY_TRAINING,
        "env": "CartPole-v1",
        "num_simulations": 1,
        "replay_ratio": 0.002,
        "replay_buffer_config": {"capacity": 20_000},
        "num_envs_per_env_runner": 32,
        "rollout_fragment_length": 50,
        "num_gpus_per_learner": 0,
        "model_config": TINY_NETWORK,
        "seed": 0,
    }
    run_config = tune.RunConfig(
        storage_path=str(tmp_path),
        stop={"training_iteration": 5},
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=2, checkpoint_at_end=False),
        verbose=0,
    )
    results = tune.Tuner(EfficientZero, param_space=space, run_config=run_config).fit()
    assert not results.errors
    trial = pathlib.Path(results[0].path)
    kept = sorted(path.name for path in trial.glob("checkpoint_*"))
    assert kept == ["checkpoint_000003", "checkpoint_000004"]
    assert find_newest(trial) == trial / kept[-1]
    for name in kept:
        verify(trial / name)
    full = "replay/segment-00000000-*"
    (older,), (newer,) = (list((trial / name).glob(full)) for name in kept)
    assert older.samefile(newer), "the first 4,096 steps are on the disk once"
    files = read_manifest(trial / kept[-1])["files"]
    linked = sum(entry["size"] for name, entry in files.items() if (trial / kept[-1] / name).stat().st_nlink > 1)
    measured(f"{linked} of {sum(entry['size'] for entry in files.values())} bytes of a tiny checkpoint are shared")
    assert not [path for path in trial.iterdir() if path.name.startswith(".")], "no leftovers"
