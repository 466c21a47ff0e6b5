"""Action vectors and the actions that searches chose between, stored, sampled and saved."""

from pathlib import Path

import numpy as np
import pytest
from replay_helpers import FakeChunk, random_episode

from rllib_efficientzero.replay import PrioritizedReplay

S, K, N, A, D = 1, 3, 2, 5, 2


def vector_episode(rng: np.random.Generator, length: int, *, id_: str = "e", dtype: type = np.float32) -> FakeChunk:
    chunk = random_episode(rng, length, id_=id_, end="truncated", shape=(3,), dtype=np.float32, num_actions=A)
    chunk.extra["sampled_actions"] = rng.integers(10, size=(length, A, D)).astype(np.float32)
    chunk.actions = chunk.extra["sampled_actions"][:, 0].astype(dtype)
    return chunk


def make_replay(capacity: int = 1000) -> PrioritizedReplay:
    return PrioritizedReplay(capacity, frame_stack=S, unroll_steps=K, td_steps=N, seed=0)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_windows_have_what_was_stored_and_actions_of_others_after_the_end(dtype: type) -> None:
    replay, rng = make_replay(), np.random.default_rng(0)
    episodes = [vector_episode(rng, 6, id_=f"e{i}", dtype=dtype) for i in range(4)]
    for episode in episodes:  # in two chunks each
        replay.add([episode.part(0, 4), episode.part(4, 6)])
    windows = replay.sample(24, beta=1.0)
    assert windows.actions.dtype == dtype
    assert windows.sampled_actions is not None
    assert windows.actions.shape == (24, K, D)
    assert windows.sampled_actions.shape == (24, K + 1, A, D)
    taken = {tuple(action) for episode in episodes for action in episode.actions}
    for row, position in enumerate(windows.position_ids):
        episode, t = episodes[position // 6], position % 6
        for k in range(K + 1):
            known = t + k < 6
            expected = episode.extra["sampled_actions"][t + k] if known else np.zeros((A, D))
            np.testing.assert_array_equal(windows.sampled_actions[row, k], expected)
            if k < K and known:
                np.testing.assert_array_equal(windows.actions[row, k], episode.actions[t + k])
            elif k < K:
                assert tuple(windows.actions[row, k]) in taken
    shards = windows.split(2)
    np.testing.assert_array_equal(np.concatenate([s.sampled_actions for s in shards]), windows.sampled_actions)


def test_a_saved_replay_goes_on_alike(tmp_path: Path) -> None:
    replay, rng = make_replay(), np.random.default_rng(1)
    episode = vector_episode(rng, 9)
    replay.add([episode.part(0, 5)])
    replay.save(tmp_path)
    loaded = make_replay()
    loaded.load(tmp_path)
    for each in (replay, loaded):
        each.add([episode.part(5, 9)])
    first, second = replay.sample(8, beta=0.5), loaded.sample(8, beta=0.5)
    for name in ("position_ids", "actions", "sampled_actions", "visit_policy", "seed"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert second.actions.dtype == np.float32


def test_other_actions_than_before_are_refused() -> None:
    replay, rng = make_replay(), np.random.default_rng(0)
    replay.add([vector_episode(rng, 5)])
    enumerated = random_episode(rng, 5, id_="b", shape=(3,), dtype=np.float32, num_actions=A)
    for other in (enumerated, vector_episode(rng, 5, id_="c", dtype=np.int64)):
        with pytest.raises(ValueError, match="does not fit those stored before"):
            replay.add([other])
    assert len(replay) == 5
