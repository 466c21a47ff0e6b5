"""Batches made in a thread beside the Learner: the same run, but for the priorities and steps that it misses."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scale_helpers import tiny_config, train_until
from test_scale_reanalyze import run, short

from rllib_efficientzero import interruption, scaled_algorithm
from rllib_efficientzero.actors import self_play
from rllib_efficientzero.actors.ahead import BatchesAhead
from rllib_efficientzero.actors.thread_switching import SWITCH_INTERVAL
from rllib_efficientzero.replay.frame_codec import FrameCodec
from rllib_efficientzero.replay.frame_sources import FramesOnDevice, decode_on_host

pytestmark = pytest.mark.usefixtures("shared_ray")

UNIFORM = {"replay_buffer_config": {"alpha": 0.0}}
ALL_STEPS_FIRST = {"num_steps_sampled_before_learning_starts": 150}  # of 160


def threads() -> set[str]:
    names = {thread.name for thread in threading.enumerate()}
    return {name for name in names if name.startswith(("reanalyze", "draw-windows"))}


@pytest.mark.parametrize("prefetch", [1, 2, 20])
def test_where_nothing_is_missed_the_run_is_the_same(prefetch: int) -> None:
    """Bit by bit, over several copies of the target network: priorities do not matter, and no steps come any more."""
    expected, result = run(short(**UNIFORM, **ALL_STEPS_FIRST))
    ahead, other = run(short(**UNIFORM, **ALL_STEPS_FIRST).reanalyze(prefetch=prefetch))
    assert result["num_updates_lifetime"] == other["num_updates_lifetime"] > 3 * 5
    assert ahead == expected
    assert other["learners"]["default_policy"]["reanalyze"]["simulations_per_s"] > 0
    assert not threads()


def test_where_something_is_the_run_repeats_itself() -> None:
    first, _ = run(short().reanalyze(prefetch=2))
    second, _ = run(short().reanalyze(prefetch=2))
    assert first == second
    assert first not in (run(short())[0], run(short().reanalyze(prefetch=1))[0])


def test_frames_that_a_device_keeps_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As beside a GPU, but for the device; 50 frames are fewer than there are."""
    expected, _ = run(short().reanalyze(prefetch=2))
    made: list[torch.Tensor] = []
    make = FramesOnDevice.__call__
    monkeypatch.setattr(FramesOnDevice, "__call__", lambda *args: made.append(make(*args)) or made[-1])
    source = FramesOnDevice(torch.device("cpu"), max_frames=50, max_bytes=10**6)
    monkeypatch.setattr(scaled_algorithm, "_frame_source", lambda config: source)
    assert run(short().reanalyze(prefetch=2))[0] == expected
    assert len(made) > 10


def test_a_gpu_in_this_process_keeps_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(replay_buffer_config={"gpu_cache_gb": 0.001, "capacity": 800})
    assert scaled_algorithm._frame_source(config) is decode_on_host
    monkeypatch.setattr(type(config), "has_gpu_in_this_process", lambda self: True)
    monkeypatch.setattr(scaled_algorithm, "get_device", lambda config, num_gpus: torch.device("cpu"))
    source = scaled_algorithm._frame_source(config)
    codec = FrameCodec((4,), np.dtype(np.float32))
    frames = SimpleNamespace(marks=np.zeros(1, np.int64), codes=lambda rows=None: [bytes(16)], note=lambda *args: None)
    assert isinstance(source(codec, frames), torch.Tensor)
    assert len(source._rows) == 900  # the capacity, and an eighth for steps that stay with their episode


FAILS_BEFORE_ITS_FIRST_UPDATE = """
from test_scale_reanalyze import short

algo = short().reanalyze(prefetch=5).build_algo()

def update(*args, **kwargs):
    raise RuntimeError("out of memory")

algo.learner_group._learner.update = update
while True:
    algo.train()
"""


def test_a_program_whose_first_update_fails_comes_to_its_end() -> None:
    """Python waits for threads that wait for the first update."""
    ended = subprocess.run(
        [sys.executable, "-c", FAILS_BEFORE_ITS_FIRST_UPDATE], check=False, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1
    assert "RuntimeError: out of memory" in ended.stderr


def test_a_batch_is_made_while_the_learner_is_at_the_one_before() -> None:
    before_all = sys.getswitchinterval()
    algo = short(target_network_update_freq=4).reanalyze(prefetch=1).build_algo()
    assert isinstance(algo.batches, BatchesAhead)
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL)
    update, sample = algo.learner_group._learner.update, algo.local_replay_buffer.sample
    is_drawn, ahead = threading.Event(), []

    def watched_sample(*args: Any, **kwargs: Any) -> Any:
        windows = sample(*args, **kwargs)
        is_drawn.set()
        return windows

    def watched_update(*args: Any, **kwargs: Any) -> Any:
        if algo.batches.has_unused():
            assert is_drawn.wait(20), "nobody draws the next windows meanwhile"
        ahead.append(algo.batches.has_unused())
        is_drawn.clear()
        return update(*args, **kwargs)

    algo.learner_group._learner.update, algo.local_replay_buffer.sample = watched_update, watched_sample
    while algo.num_updates < 16:
        before = len(ahead)
        algo.train()
        # Not across a copy of the target network, which is after every fourth update, and the end of an iteration.
        last = len(ahead) - 1
        assert ahead[before:] == [update % 4 != 3 and update < last for update in range(before, len(ahead))]
        assert not algo.batches.has_unused()
    algo.stop()
    assert sys.getswitchinterval() == pytest.approx(before_all)


def test_the_first_batches_of_an_iteration_are_begun_before_its_self_play() -> None:
    algo = short().reanalyze(prefetch=2).build_algo()
    train_until(algo, lambda result: result["num_updates_lifetime"] >= 8)
    replay, runner, events = algo.local_replay_buffer, algo.env_runner_group.local_env_runner, []
    sample, add, play = replay.sample, replay.add, runner.sample
    is_playing = threading.Event()

    def watched_sample(*args: Any, **kwargs: Any) -> Any:
        if len(events) < 2:
            assert is_playing.wait(20)  # as if it took as long as that
        windows = sample(*args, **kwargs)
        events.append(windows.num_added)
        return windows

    def watched_play(*args: Any, **kwargs: Any) -> Any:
        is_playing.set()
        return play(*args, **kwargs)

    def watched_add(*args: Any, **kwargs: Any) -> Any:
        events.append("added")
        return add(*args, **kwargs)

    replay.sample, replay.add, runner.sample = watched_sample, watched_add, watched_play
    before = algo.num_interactions
    algo.train()
    after = algo.num_interactions
    assert after > before
    assert events == [before, before, "added", *6 * [after]]
    algo.stop()


def test_batches_are_made_while_remote_runners_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    algo = short().env_runners(num_env_runners=1).reanalyze(prefetch=2).build_algo()
    train_until(algo, lambda result: result["num_updates_lifetime"] >= 8)
    made = threading.Event()
    worker, play = algo.batches._workers[0], self_play.sample_remotely
    make = worker._connector

    def watched_make(*args: Any, **kwargs: Any) -> Any:
        batch = make(*args, **kwargs)
        made.set()
        return batch

    def slow_play(*args: Any, **kwargs: Any) -> Any:
        assert made.wait(20), "nobody makes a batch meanwhile"
        return play(*args, **kwargs)

    worker._connector = watched_make
    monkeypatch.setattr(self_play, "sample_remotely", slow_play)
    algo.train()
    algo.stop()


def test_batches_that_no_update_asks_for_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a sample has fewer steps than it was asked for."""
    algo = short().reanalyze(prefetch=2).build_algo()
    train_until(algo, lambda result: result["num_updates_lifetime"] >= 8)
    monkeypatch.setattr(algo, "_sample", lambda num_steps: [])
    made = algo.num_updates
    algo.train()
    assert algo.num_updates == made
    assert not algo.batches.has_unused()
    monkeypatch.undo()
    result = algo.train()
    assert result["num_updates_lifetime"] == made + 8
    algo.stop()


def test_an_error_in_the_thread_ends_the_iteration() -> None:
    algo = short().reanalyze(prefetch=2).build_algo()
    train_until(algo, lambda result: result["num_updates_lifetime"] >= 8)
    sample, drawn = algo.local_replay_buffer.sample, []

    def failing_sample(*args: Any, **kwargs: Any) -> Any:
        drawn.append(1)
        if len(drawn) == 3:
            raise OSError("the memory is gone")
        return sample(*args, **kwargs)

    algo.local_replay_buffer.sample = failing_sample
    with pytest.raises(OSError, match="the memory is gone"):
        algo.train()
    algo.stop()
    assert not threads()


def test_an_interrupted_iteration_loses_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch that was drawn is learned from, so that the run goes on as if nothing had been drawn ahead."""
    algo = short(**UNIFORM, **ALL_STEPS_FIRST).reanalyze(prefetch=2).build_algo()
    plain = short(**UNIFORM, **ALL_STEPS_FIRST).build_algo()
    for running in (algo, plain):
        train_until(running, lambda result: result["num_updates_lifetime"] >= 8)
    made = algo.num_updates
    assert plain.num_updates == made
    asked = iter([False] * 3)
    monkeypatch.setattr(interruption, "requested", lambda: next(asked, True))
    algo.train()
    assert made < algo.num_updates < made + 8
    assert not algo.batches.has_unused()
    monkeypatch.setattr(interruption, "requested", lambda: plain.num_updates >= algo.num_updates)
    plain.train()
    assert plain.num_updates == algo.num_updates
    drawn = [running.local_replay_buffer.sample(16, beta=1.0).position_ids.tolist() for running in (algo, plain)]
    assert drawn[0] == drawn[1]
    algo.stop()
    plain.stop()


def test_nothing_is_made_ahead_for_learners_elsewhere_without_actors() -> None:
    config = tiny_config().learners(num_learners=2).reanalyze(prefetch=1)
    with pytest.raises(ValueError, match="`reanalyze_prefetch` 1 needs somebody who makes batches ahead"):
        config.validate()
    assert tiny_config().prefetched_batches() == 0
    assert tiny_config().reanalyze(num_actors=3).prefetched_batches() == 3
