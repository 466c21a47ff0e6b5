"""Memory of real Pong: 100k steps must stay under 0.5 GB."""

import sys
from dataclasses import asdict

import numpy as np
import pytest
from replay_helpers import FakeChunk

from rllib_efficientzero.env.atari import AtariProtocol, make_atari
from rllib_efficientzero.replay import PrioritizedReplay

pytest.importorskip("ale_py")


def test_bytes_per_step_of_real_pong() -> None:
    env = make_atari(asdict(AtariProtocol.training("Pong")))
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    frames = [observation]
    actions = [int(env.action_space.sample()) for _ in range(700)]  # shorter than any game
    for action in actions:
        observation, _, terminated, _, _ = env.step(action)
        assert not terminated
        frames.append(observation)
    extra = {"root_value": np.zeros(700, np.float32), "visit_policy": np.zeros((700, 6), np.float32)}
    replay = PrioritizedReplay(frame_stack=4, unroll_steps=5, td_steps=5, seed=0)
    for low in range(0, 700, 50):
        whole = FakeChunk("pong", 0, np.stack(frames), np.array(actions), np.zeros(700, np.float32), extra)
        replay.add([whole.part(low, low + 50)])
    (episode,) = replay._episodes.values()
    assert sum(map(sys.getsizeof, episode.frames)) < replay.get_metrics()["num_bytes"]
    assert replay.get_metrics()["bytes_per_step"] < 1000  # 27,648 raw; the bound of the issue is 5,000
    windows = replay.sample(700, beta=1.0)
    for row, t in enumerate(windows.position_ids):
        np.testing.assert_array_equal(windows.frames[row, 3], frames[t])
        np.testing.assert_array_equal(windows.frames[row, 4], frames[t + 1])
