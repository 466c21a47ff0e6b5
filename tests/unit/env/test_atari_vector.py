"""ALE's own vector plays as single games do: every pixel, reward and flag of every step."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rllib_efficientzero.env.atari import AtariProtocol, make_atari
from rllib_efficientzero.env.atari_vector import AtariVector, make_atari_vector
from rllib_efficientzero.env.guard import GuardPolicy
from rllib_efficientzero.env.making import make_vector_env

NUM_ENVS = 2


def both(**settings: Any) -> tuple[AtariVector, SyncVectorEnv]:
    """The vector and single games of one protocol, without random beginnings."""
    protocol = AtariProtocol(**{"noop_max": 0, **settings})
    return AtariVector(protocol, NUM_ENVS), SyncVectorEnv([lambda: make_atari(asdict(protocol))] * NUM_ENVS)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"game": "Pong"}, 300),
        ({"game": "Breakout"}, 400),
        ({"game": "Breakout", "terminal_on_life_loss": False, "clip_rewards": False}, 400),
        ({"game": "MsPacman", "full_action_space": True, "frame_skip": 3}, 400),
        ({"game": "Breakout", "grayscale": True, "screen_size": 48}, 200),
        ({"game": "Breakout", "max_frames": 120}, 300),
        ({"game": "Breakout", "max_frames": 108}, 300),
        ({"game": "Pong", "max_frames": 80, "clip_rewards": False}, 100),
    ],
    ids=str,
)
def test_every_step_is_the_same(settings: dict[str, Any], steps: int) -> None:
    vector, singles = both(**settings)
    assert vector.single_observation_space == singles.single_observation_space
    assert vector.single_action_space == singles.single_action_space
    np.testing.assert_array_equal(vector.reset(seed=0)[0], singles.reset(seed=0)[0])
    rng = np.random.default_rng(0)
    ends = 0
    for time in range(steps):
        actions = rng.integers(singles.single_action_space.n, size=NUM_ENVS)
        found, expected = vector.step(actions), singles.step(actions)
        for part, one, other in zip(
            ("observation", "reward", "terminated", "truncated"), found, expected, strict=False
        ):
            np.testing.assert_array_equal(one, other, err_msg=f"{part} of step {time}")
        ends += int((found[2] | found[3]).sum())
    assert ends > 0 or settings["game"] == "Pong"
    hidden = sum(env.get_wrapper_attr("hidden_steps") for env in singles.envs)
    assert vector.hidden_steps == hidden
    vector.close()
    singles.close()


def test_a_run_plays_it_by_name() -> None:
    vector = make_vector_env(
        "ale_py:ALE/Breakout-v5",
        {"noop_max": 0},
        num_envs=3,
        mode=gym.VectorizeMode.VECTOR_ENTRY_POINT,
        policy=GuardPolicy(),
        runner="EnvRunner 0",
        timeout_s=None,
    )
    assert vector.unwrapped.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observations, _ = vector.reset(seed=0)
    assert observations.shape == (3, 96, 96, 3)
    assert vector.step(np.array([0, 1, 2]))[0].dtype == np.uint8
    vector.close()


def test_games_begin_at_random_frames_decided_by_the_seed() -> None:
    vector = make_atari_vector({"game": "Pong", "num_envs": 8})
    begun = []
    for seed in (0, 1, 0):
        _, infos = vector.reset(seed=seed * 100)
        begun.append(infos["episode_frame_number"].tolist())
    assert begun[0] == begun[2] != begun[1]
    for seed in range(3, 8):
        begun.append(vector.reset(seed=seed * 100)[1]["episode_frame_number"].tolist())
    frames = np.concatenate(begun)
    assert 0 <= frames.min() < 10
    assert 20 < frames.max() <= 30
    vector.close()


def test_unknown_games_and_settings_are_answered_as_for_single_ones() -> None:
    with pytest.raises(ValueError, match='did you mean "Pong"'):
        make_atari_vector({"game": "Pongg", "num_envs": 2})
    with pytest.raises(ValueError, match='did you mean "frame_skip"'):
        make_atari_vector({"game": "Pong", "num_envs": 2, "frame_skp": 2})
