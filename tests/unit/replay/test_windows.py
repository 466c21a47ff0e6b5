"""Windows against a slow restatement of their definition."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_helpers import NUM_ACTIONS, FakeChunk, interleaved_chunks, random_episode

from rllib_efficientzero.replay import PrioritizedReplay, Windows

S, K, N = 4, 5, 5
ENDS = ["terminated", "truncated", "ongoing"]


def filled_replay(
    seed: int, lengths: list[int], *, shape: tuple[int, ...] = (4, 4, 1), **kwargs: object
) -> tuple[PrioritizedReplay, list[FakeChunk], list[tuple[int, int]]]:
    rng = np.random.default_rng(seed)
    episodes = [
        random_episode(rng, length, id_=f"e{i}", end=ENDS[i % 3], shape=shape, **kwargs)
        for i, length in enumerate(lengths)
    ]
    chunks, positions = interleaved_chunks(rng, episodes)
    replay = PrioritizedReplay(10_000, frame_stack=S, unroll_steps=K, td_steps=N, seed=seed)
    while chunks:
        count = int(rng.integers(1, 4))
        replay.add(chunks[:count])
        del chunks[:count]
    return replay, episodes, positions


def check_window(windows: Windows, row: int, episode: FakeChunk, t: int) -> None:
    length = len(episode)
    observations, masks = episode.observations, None
    if isinstance(observations, dict):
        observations, masks = observations["observations"], observations["action_mask"]
    assert windows.frames.dtype == observations.dtype
    for j in range(S - 1 + K + 1 + N):
        time = min(max(t - (S - 1) + j, 0), length)
        np.testing.assert_array_equal(windows.frames[row, j], observations[time])
    for k in range(K):
        if t + k < length:
            assert windows.actions[row, k] == episode.actions[t + k]
        assert 0 <= windows.actions[row, k] < NUM_ACTIONS
    for k in range(K + N):
        assert windows.rewards[row, k] == (episode.rewards[t + k] if t + k < length else 0)
    for k in range(K + 1):
        known = t + k < length
        assert windows.root_value[row, k] == (episode.extra["root_value"][t + k] if known else 0)
        expected = episode.extra["visit_policy"][t + k] if known else np.zeros(NUM_ACTIONS)
        np.testing.assert_array_equal(windows.visit_policy[row, k], expected)
    if masks is None:
        assert windows.action_mask is None
    else:
        assert windows.action_mask is not None
        for k in range(K + N + 1):
            np.testing.assert_array_equal(windows.action_mask[row, k], masks[min(t + k, length)])
    assert windows.steps_left[row] == length - t
    assert windows.terminated[row] == episode.is_terminated


@given(
    seed=st.integers(0, 2**32 - 1), lengths=st.lists(st.integers(1, 25), min_size=1, max_size=6), masks=st.booleans()
)
@settings(max_examples=40, deadline=None)
def test_equal_brute_force(seed: int, lengths: list[int], masks: bool) -> None:
    replay, episodes, positions = filled_replay(seed, lengths, masks=masks)
    assert len(replay) == replay.num_added == sum(lengths)
    windows = replay.sample(len(replay), beta=1.0)
    assert sorted(windows.position_ids) == list(range(len(positions)))
    for row, position in enumerate(windows.position_ids):
        index, t = positions[position]
        check_window(windows, row, episodes[index], t)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((4,), np.float32), ((), np.int64), ((16, 16, 3), np.uint8), ((12, 12), np.float64)]
)
def test_any_observation(shape: tuple[int, ...], dtype: type) -> None:
    replay, episodes, positions = filled_replay(3, [30, 7, 12], shape=shape, dtype=dtype)
    windows = replay.sample(40, beta=0.4)
    assert windows.frames.shape == (40, S + K + N, *shape)
    for row, position in enumerate(windows.position_ids):
        index, t = positions[position]
        check_window(windows, row, episodes[index], t)


def test_shapes_and_dtypes() -> None:
    replay, _, _ = filled_replay(0, [30, 7, 12], masks=True)
    windows = replay.sample(8, beta=0.4)
    expected = {
        "position_ids": ((8,), np.int64),
        "weights": ((8,), np.float32),
        "frames": ((8, 14, 4, 4, 1), np.uint8),
        "actions": ((8, 5), np.int64),
        "rewards": ((8, 10), np.float32),
        "visit_policy": ((8, 6, 4), np.float32),
        "root_value": ((8, 6), np.float32),
        "action_mask": ((8, 11, 4), np.uint8),
        "steps_left": ((8,), np.int64),
        "terminated": ((8,), np.bool_),
    }
    assert {f.name for f in fields(Windows)} == {*expected, "num_added", "seed", "sampled_actions"}
    assert windows.sampled_actions is None
    for name, (shape, dtype) in expected.items():
        assert getattr(windows, name).shape == shape, name
        assert getattr(windows, name).dtype == dtype, name
    assert windows.num_added == 49


def test_actions_beyond_the_end_are_uniform() -> None:
    rng = np.random.default_rng(0)
    replay = PrioritizedReplay(100, frame_stack=1, unroll_steps=5, td_steps=0, seed=0)
    replay.add([random_episode(rng, 1, id_=str(i), end="terminated", shape=(2,)) for i in range(50)])
    counts = np.zeros(NUM_ACTIONS)
    for _ in range(40):
        counts += np.bincount(replay.sample(50, beta=0.0).actions[:, 1:].ravel(), minlength=NUM_ACTIONS)
    expected = counts.sum() / NUM_ACTIONS
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # chi-square, 3 degrees of freedom, p = 0.001


def test_a_terminal_mask_without_legal_actions_allows_all() -> None:
    episode = random_episode(np.random.default_rng(0), 3, end="terminated", masks=True)
    episode.observations["action_mask"][-1] = 0
    replay = PrioritizedReplay(10, frame_stack=1, unroll_steps=5, td_steps=0, seed=0)
    replay.add([episode])
    windows = replay.sample(3, beta=0.0)
    assert windows.action_mask is not None
    first = windows.action_mask[list(windows.position_ids).index(0)]
    np.testing.assert_array_equal(first[:3], episode.observations["action_mask"][:3])
    np.testing.assert_array_equal(first[3:], 1)


def test_split() -> None:
    replay, _, _ = filled_replay(0, [30, 7, 12], masks=True)
    windows = replay.sample(11, beta=0.4)
    shards = windows.split(3)
    assert sum(map(len, shards)) == 11
    assert {len(shard) for shard in shards} == {3, 4}
    assert len({shard.seed for shard in shards} | {windows.seed}) == 4
    assert [shard.seed for shard in shards] == [shard.seed for shard in windows.split(3)]
    for field in fields(Windows):
        if field.name not in ("seed", "num_added", "sampled_actions"):
            joined = np.concatenate([getattr(shard, field.name) for shard in shards])
            np.testing.assert_array_equal(joined, getattr(windows, field.name))
    assert windows.split(1) == [windows]
    with pytest.raises(ValueError, match="12 shards"):
        windows.split(12)
