"""Measures the replay: its memory per step of real Pong, and the time of its operations.

python -m benchmarks.replay --out benchmarks/results/replay.json
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import report as reports
from rllib_efficientzero.env.atari import AtariProtocol, make_atari
from rllib_efficientzero.memory import reuse_freed_memory
from rllib_efficientzero.replay import PrioritizedReplay

BATCH = 256
NUM_ACTIONS = 6


@dataclass
class Chunk:
    """The part of RLlib's `SingleAgentEpisode` that the replay reads."""

    id_: str
    observations: npt.NDArray[Any]
    actions: npt.NDArray[np.int64]
    rewards: npt.NDArray[np.float32]
    is_terminated: bool = False
    is_truncated: bool = False
    t_started: int = 0

    def __len__(self) -> int:
        return len(self.actions)

    def get_observations(self) -> npt.NDArray[Any]:
        return self.observations

    def get_actions(self) -> npt.NDArray[np.int64]:
        return self.actions

    def get_rewards(self) -> npt.NDArray[np.float32]:
        return self.rewards

    def get_extra_model_outputs(self, key: str) -> npt.NDArray[np.float32]:
        shape = (len(self), NUM_ACTIONS) if key == "visit_policy" else (len(self),)
        return np.full(shape, 1 / NUM_ACTIONS, np.float32)


def new_replay(capacity: int = 1_000_000) -> PrioritizedReplay:
    """A replay with the paper's window: 4 stacked frames, 5 unrolled steps, 5 TD steps."""
    return PrioritizedReplay(capacity, frame_stack=4, unroll_steps=5, td_steps=5, seed=0)


def play_pong(replay: PrioritizedReplay, num_steps: int, chunk_steps: int = 200) -> dict[str, float]:
    """Fills `replay` with games of random actions. Returns seconds per step of playing and of adding."""
    env = make_atari(asdict(AtariProtocol.training("Pong")))
    env.action_space.seed(0)
    seconds = {"env": 0.0, "add": 0.0}
    observation, _ = env.reset(seed=0)
    game = t_started = 0
    while replay.num_added < num_steps:
        start = time.perf_counter()
        frames, actions, rewards, terminated, truncated = [observation], [], [], False, False
        while len(actions) < chunk_steps and not (terminated or truncated):
            actions.append(env.action_space.sample())
            observation, reward, terminated, truncated, _ = env.step(actions[-1])
            frames.append(observation)
            rewards.append(reward)
        seconds["env"] += time.perf_counter() - start
        chunk = Chunk(
            str(game), np.stack(frames), np.array(actions), np.float32(rewards), terminated, truncated, t_started
        )
        start = time.perf_counter()
        replay.add([chunk])
        seconds["add"] += time.perf_counter() - start
        t_started += len(actions)
        if terminated or truncated:
            observation, _ = env.reset()
            game, t_started = game + 1, 0
    return {name: value / replay.num_added for name, value in seconds.items()}


def timed_ms(function: Callable[[], Any], repeats: int = 30) -> dict[str, float]:
    """Milliseconds of CPU time per call, the best and the median, after three calls to warm up."""
    durations = []
    for _ in range(repeats + 3):
        start = time.thread_time()
        function()
        durations.append(time.thread_time() - start)
    durations = [1e3 * duration for duration in durations[3:]]
    return {"best": round(min(durations), 3), "median": round(statistics.median(durations), 3)}


def resident_bytes() -> int:
    """Resident memory of this process (Linux with glibc), without memory that is free but kept by the allocator."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_of_pong(num_steps: int) -> dict[str, Any]:
    """Resident memory per step."""
    play_pong(new_replay(), min(500, num_steps))  # so that imports and the emulator are not counted as replay memory
    before = resident_bytes()
    replay = new_replay()
    play_pong(replay, num_steps)
    return {"resident_bytes_per_step": round((resident_bytes() - before) / len(replay), 1)}


def benchmark_pong(num_steps: int, repeats: int = 30) -> dict[str, Any]:
    """Measures bytes per step as the replay counts them, and the times of adding, sampling, saving and loading."""
    replay = new_replay()
    per_step = play_pong(replay, num_steps)
    frames = replay.sample(BATCH, beta=1.0).frames
    result = {
        "steps": len(replay),
        "bytes_per_step": round(replay.get_metrics()["bytes_per_step"], 1),
        "raw_bytes_per_step": frames[0, 0].nbytes,
        "env_ms_per_step": round(1e3 * per_step["env"], 4),
        "add_ms_per_step": round(1e3 * per_step["add"], 4),
        "batch_mib": round(frames.nbytes / 2**20, 1),
        "sample_ms": timed_ms(lambda: replay.sample(BATCH, beta=1.0), repeats),
        "copy_of_raw_frames_ms": timed_ms(frames.copy, repeats),
    }
    with tempfile.TemporaryDirectory() as directory:
        start = time.perf_counter()
        replay.save(directory)
        result["save_s"] = round(time.perf_counter() - start, 3)
        result["saved_bytes_per_step"] = round(
            sum(path.stat().st_size for path in Path(directory).iterdir()) / len(replay), 1
        )
        loaded = new_replay()
        start = time.perf_counter()
        loaded.load(directory)
        result["load_s"] = round(time.perf_counter() - start, 3)
    return result


def benchmark_priorities(num_positions: int, repeats: int = 30) -> dict[str, Any]:
    """Measures times that depend on the number of positions; observations are vectors of four numbers."""
    replay, rng = new_replay(num_positions), np.random.default_rng(0)
    length = 1000
    for game in range(num_positions // length):
        observations = rng.random((length + 1, 4), dtype=np.float32)
        replay.add([Chunk(str(game), observations, np.zeros(length, int), np.zeros(length, np.float32), True)])
    replay.update_priorities(np.arange(num_positions), rng.exponential(size=num_positions))
    batches = iter([(rng.integers(num_positions, size=BATCH), rng.exponential(size=BATCH)) for _ in range(repeats + 3)])
    return {
        "positions": len(replay),
        "update_priorities_ms": timed_ms(lambda: replay.update_priorities(*next(batches)), repeats),
        "draw_ms": timed_ms(lambda: replay._priorities.draw(BATCH, replay._rng), repeats),
        "sample_vectors_ms": timed_ms(lambda: replay.sample(BATCH, beta=1.0), repeats),
        "max_priority_ms": timed_ms(replay._max_priority, repeats),
    }


def summary(pong: dict[str, Any], priorities: list[dict[str, Any]]) -> dict[str, str]:
    """The figures that have goals, as text."""
    per_step = pong["bytes_per_step"]
    result = {
        "replay of 100k steps of Pong": f"{per_step / 10:.1f} MB ({per_step:.0f} bytes per step)",
        f"sampling {BATCH} windows": f"{pong['sample_ms']['best']:.1f} ms",
        "copying their raw bytes": f"{pong['copy_of_raw_frames_ms']['best']:.1f} ms",
        "sampling over copying": f"{pong['sample_ms']['best'] / pong['copy_of_raw_frames_ms']['best']:.2f}",
    }
    for row in priorities:
        what = f"priorities of {BATCH} among {row['positions']:,}"
        result[what] = f"{row['update_priorities_ms']['best']:.2f} ms"
    return result


def main() -> None:
    """Runs everything and writes one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=reports.RESULTS / "replay.json")
    parser.add_argument("--steps", type=int, default=20_000, help="steps of Pong to play")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the replay decodes frames with as many threads as torch uses
    conditions = reports.conditions("lz4", "ale_py")
    # Memory first, before the allocator is set to keep freed memory, as in a process that trains: it would count as the
    # replay's.
    memory = memory_of_pong(arguments.steps)
    reuse_freed_memory()
    pong = memory | benchmark_pong(arguments.steps)
    priorities = [benchmark_priorities(count) for count in (100_000, 1_000_000)]
    result = {
        reports.SUMMARY: summary(pong, priorities),
        "conditions": conditions,
        "batch": BATCH,
        "pong": pong,
        "priorities": priorities,
    }
    reports.write(arguments.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
