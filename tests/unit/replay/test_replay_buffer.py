import sys

import numpy as np
import pytest
from replay_helpers import interleaved_chunks, random_episode

from rllib_efficientzero.replay import PrioritizedReplay


def make_replay(capacity: int = 1000, *, seed: int = 0, priority_exponent: float = 0.6) -> PrioritizedReplay:
    return PrioritizedReplay(
        capacity, frame_stack=2, unroll_steps=2, td_steps=2, priority_exponent=priority_exponent, seed=seed
    )


def replay_of(length: int, **kwargs: object) -> PrioritizedReplay:
    replay = make_replay(**kwargs)
    replay.add([random_episode(np.random.default_rng(0), length, shape=(2,))])
    return replay


def priorities_of(replay: PrioritizedReplay, position_ids: np.ndarray) -> np.ndarray:
    return replay._priorities.get(np.asarray(position_ids) % replay.capacity)


# --- sampling --------------------------------------------------------------------------------------------------------


def test_frequencies_follow_priority_to_the_alpha() -> None:
    replay = replay_of(50)
    priorities = np.random.default_rng(1).exponential(size=50) + 0.01
    replay.update_priorities(np.arange(50), priorities)
    counts = np.zeros(50)
    for _ in range(20_000):  # batches of one: exactly the first draw's probabilities
        counts[replay._priorities.draw(1, replay._rng)] += 1
    expected = priorities**0.6 / (priorities**0.6).sum() * counts.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 85.4  # chi-square, 49 degrees of freedom, p = 0.001


def test_batches_equal_successive_sampling_without_replacement() -> None:
    replay = replay_of(4)
    priorities = np.array([8.0, 1.0, 2.0, 4.0])
    replay.update_priorities(np.arange(4), priorities)
    p = priorities**0.6 / (priorities**0.6).sum()
    pairs = np.zeros((4, 4))
    for _ in range(20_000):
        first, second = replay._priorities.draw(2, replay._rng)
        pairs[first, second] += 1
    assert (np.diag(pairs) == 0).all()
    expected = p[:, None] * p[None, :] / (1 - p[:, None]) * 20_000
    off_diagonal = ~np.eye(4, dtype=bool)
    chi_square = ((pairs - expected) ** 2 / expected)[off_diagonal].sum()
    assert chi_square < 31.3  # 11 degrees of freedom, p = 0.001


def test_alpha_zero_is_uniform_with_equal_weights() -> None:
    replay = replay_of(20, priority_exponent=0.0)
    replay.update_priorities(np.arange(20), np.arange(20) * 100.0)
    np.testing.assert_array_equal(replay.sample(10, beta=1.0).weights, 1)


@pytest.mark.parametrize("spread", [0, 3, 12])
def test_a_batch_has_no_duplicates_however_unequal_the_priorities(spread: float) -> None:
    replay = replay_of(300)
    replay.update_priorities(np.arange(300), 10.0 ** np.random.default_rng(0).uniform(-spread, spread, size=300))
    total = replay._priorities._tree.total
    for batch_size in (1, 100, 299, 300):
        windows = replay.sample(batch_size, beta=0.5)
        assert len(set(windows.position_ids)) == len(windows) == batch_size
    assert replay._priorities._tree.total == total  # drawing leaves no trace


def test_weights_by_hand() -> None:
    replay = replay_of(3, priority_exponent=1.0)
    replay.update_priorities(np.arange(3), np.array([1.0, 2.0, 5.0]))
    windows = replay.sample(3, beta=0.5)
    # N * P = 3/8, 6/8, 15/8; to the power of -1/2, over the largest, that of position 0: sqrt(1/p).
    expected = np.sqrt([1.0, 1 / 2, 1 / 5])[windows.position_ids]
    np.testing.assert_allclose(windows.weights, expected, rtol=1e-6)
    np.testing.assert_array_equal(replay.sample(3, beta=0.0).weights, 1)


def test_the_largest_weight_is_that_of_the_batch_not_of_the_buffer() -> None:
    replay = replay_of(100)
    replay.update_priorities(np.arange(100), np.append(1e-6, np.linspace(1, 2, 99)))
    for _ in range(20):
        assert replay.sample(10, beta=1.0).weights.max() == 1


def test_too_large_a_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"batch of 6 .* holds 5"):
        replay_of(5).sample(6, beta=1.0)
    with pytest.raises(ValueError, match="holds 0"):
        make_replay().sample(1, beta=1.0)
    with pytest.raises(ValueError, match="batch of 0"):
        replay_of(5).sample(0, beta=1.0)


def test_equal_seeds_draw_equal_batches() -> None:
    batches = [[replay_of(200, seed=seed).sample(32, beta=1.0) for _ in range(2)] for seed in (0, 1)]
    for first, second in batches:
        np.testing.assert_array_equal(first.position_ids, second.position_ids)
        np.testing.assert_array_equal(first.actions, second.actions)
        assert first.seed == second.seed
    assert (batches[0][0].position_ids != batches[1][0].position_ids).any()
    replay = replay_of(200)
    assert replay.sample(8, beta=1.0).seed != replay.sample(8, beta=1.0).seed


# --- priorities ------------------------------------------------------------------------------------------------------


def test_new_positions_get_the_largest_live_priority() -> None:
    rng = np.random.default_rng(0)
    replay = make_replay(10)
    replay.add([random_episode(rng, 4, id_="a", shape=(2,))])
    np.testing.assert_array_equal(priorities_of(replay, np.arange(4)), 1)
    replay.update_priorities(np.array([0, 1, 2, 3]), np.array([7.0, 0.1, 0.2, 0.3]))
    replay.add([random_episode(rng, 2, id_="b", shape=(2,))])
    np.testing.assert_array_equal(priorities_of(replay, np.array([4, 5])), 7)
    replay.update_priorities(np.array([0, 4, 5]), np.array([0.5, 0.4, 0.4]))
    replay.add([random_episode(rng, 1, id_="c", shape=(2,))])
    assert priorities_of(replay, np.array([6])) == 0.5  # the outlier is gone from the scale
    replay.add([random_episode(rng, 9, id_="d", shape=(2,))])
    assert replay.get_metrics()["max_priority"] == 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1.0])
def test_bad_priorities_are_refused_whole(bad: float) -> None:
    replay = replay_of(5)
    with pytest.raises(ValueError, match="position 3 got"):
        replay.update_priorities(np.array([2, 3]), np.array([5.0, bad]))
    np.testing.assert_array_equal(priorities_of(replay, np.arange(5)), 1)


def test_ids_that_were_never_given_are_refused() -> None:
    for bad in (-1, 5):
        with pytest.raises(ValueError, match=r"\[0, 5\)"):
            replay_of(5).update_priorities(np.array([bad]), np.array([1.0]))
    with pytest.raises(ValueError, match="as many ids"):
        replay_of(5).update_priorities(np.array([1, 2]), np.array([1.0]))


def test_ids_of_evicted_positions_are_ignored() -> None:
    rng = np.random.default_rng(0)
    replay = make_replay(6)
    replay.add([random_episode(rng, 6, id_="a", shape=(2,))])
    replay.add([random_episode(rng, 2, id_="b", shape=(2,))])
    replay.update_priorities(np.array([0, 1, 2]), np.array([50.0, 60.0, 3.0]))
    # Positions 6 and 7 took the slots of 0 and 1, which must not have touched them.
    np.testing.assert_array_equal(priorities_of(replay, np.array([2, 3, 6, 7])), [3, 1, 1, 1])


def test_zero_priority_stays_reachable() -> None:
    replay = replay_of(5)
    replay.update_priorities(np.arange(5), np.zeros(5))
    assert sorted(replay.sample(5, beta=1.0).position_ids) == [0, 1, 2, 3, 4]


# --- eviction --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [1, 7, 40, 64])
def test_eviction_keeps_the_newest_positions_and_only_their_episodes(capacity: int) -> None:
    rng = np.random.default_rng(capacity)
    lengths = rng.integers(1, 30, size=12)
    episodes = [
        random_episode(rng, int(n), id_=f"e{i}", end="terminated", shape=(3,), dtype=np.float32)
        for i, n in enumerate(lengths)
    ]
    chunks, positions = interleaved_chunks(rng, episodes)
    replay = make_replay(capacity)
    for chunk in chunks:
        replay.add([chunk])
        live = positions[max(0, replay.num_added - capacity) : replay.num_added]
        assert len(replay) == len(live)
        windows = replay.sample(len(live), beta=1.0)
        assert sorted(windows.position_ids) == list(range(replay.num_added - len(live), replay.num_added))
        for row, position in enumerate(windows.position_ids):
            index, t = positions[position]
            np.testing.assert_array_equal(windows.frames[row, 1], episodes[index].observations[t])
            np.testing.assert_array_equal(windows.frames[row, 2], episodes[index].observations[t + 1])
            assert windows.rewards[row, 0] == episodes[index].rewards[t]
        # An episode is held exactly while one of its positions is live (pieces of an evicted one count again).
        live_ids = {index for index, _ in live}
        assert len(replay._episodes) >= len(live_ids)
        assert {int(n) for n in replay._episode_of_slot[windows.position_ids % capacity]} == set(replay._episodes)
        assert replay._num_bytes == sum(episode.nbytes for episode in replay._episodes.values())
        assert set(replay._ongoing.values()) <= set(replay._episodes)


def test_an_episode_longer_than_the_buffer() -> None:
    episode = random_episode(np.random.default_rng(0), 100, shape=(2,))
    replay = make_replay(16)
    replay.add([episode])
    windows = replay.sample(16, beta=1.0)
    assert sorted(windows.position_ids) == list(range(84, 100))
    for row, position in enumerate(windows.position_ids):
        # Frames before the oldest live position are still there for its stack.
        np.testing.assert_array_equal(windows.frames[row, 0], episode.observations[position - 1])


def test_memory_is_freed() -> None:
    rng = np.random.default_rng(0)
    replay = make_replay(64)
    sizes = []
    for i in range(40):
        replay.add([random_episode(rng, 16, id_=str(i), end="terminated")])
        sizes.append(replay.get_metrics()["num_bytes"])
    assert sizes[-1] == sizes[10] == replay.get_metrics()["num_bytes"]
    assert len(replay._episodes) == 4
    assert not replay._ongoing


# --- episodes --------------------------------------------------------------------------------------------------------


def test_the_frame_between_two_chunks_is_stored_once() -> None:
    episode = random_episode(np.random.default_rng(0), 20)
    replay = make_replay()
    for low in range(0, 20, 5):
        replay.add([episode.part(low, low + 5)])
    (stored,) = replay._episodes.values()
    assert len(stored.frames) == 21
    assert not stored.is_done


def test_a_lost_chunk_splits_the_episode(caplog: pytest.LogCaptureFixture) -> None:
    episode = random_episode(np.random.default_rng(0), 20, end="terminated")
    replay = make_replay()
    replay.add([episode.part(0, 5), episode.part(10, 20)])
    assert "Steps of episode e before step 10 were lost" in caplog.text
    first, second = replay._episodes.values()
    assert (len(first), first.terminated) == (5, False)
    assert (len(second), second.terminated, second.t_started) == (10, True, 10)


def test_an_episode_without_an_end_is_kept_in_parts() -> None:
    """Of which the old ones can go: memory does not grow, and what is sampled is still what was played."""
    episode = random_episode(np.random.default_rng(0), 400)
    replay = make_replay(capacity=50)
    sizes = []
    for start in range(0, 400, 10):
        replay.add([episode.part(start, start + 10)])
        sizes.append(replay.get_metrics()["num_bytes"])
        assert len(replay._episodes) <= 3
    assert max(sizes[20:]) < 1.3 * max(sizes[:12])
    windows = replay.sample(50, beta=0.0)
    assert sorted(windows.position_ids) == list(range(350, 400))
    np.testing.assert_array_equal(windows.rewards[:, 0], episode.rewards[windows.position_ids])
    np.testing.assert_array_equal(windows.frames[:, 1], episode.observations[windows.position_ids])


def test_chunks_that_contradict_each_other_are_refused() -> None:
    episode = random_episode(np.random.default_rng(0), 20)
    replay = make_replay()
    replay.add([episode.part(0, 5)])
    later = episode.part(5, 10)
    later.observations = later.observations.copy()
    later.observations[0] ^= 1
    with pytest.raises(ValueError, match="does not begin with the observation"):
        replay.add([later])


def test_chunks_without_steps_are_skipped() -> None:
    episode = random_episode(np.random.default_rng(0), 5)
    replay = make_replay()
    replay.add([episode.part(0, 0), episode.part(0, 5), episode.part(5, 5)])
    assert len(replay) == 5
    assert replay.get_metrics()["num_episodes"] == 1


def test_malformed_chunks_are_refused() -> None:
    def broken(**changes: object) -> None:
        chunk = random_episode(np.random.default_rng(0), 5)
        for name, value in changes.items():
            setattr(chunk, name, value)
        make_replay().add([chunk])

    good = random_episode(np.random.default_rng(0), 5)
    with pytest.raises(ValueError, match='no extra model output "visit_policy"'):
        broken(extra={"root_value": good.extra["root_value"]})
    with pytest.raises(ValueError, match="observations has length 5"):
        broken(observations=good.observations[:5])
    with pytest.raises(ValueError, match="rewards has length 4"):
        broken(rewards=good.rewards[:4])
    with pytest.raises(ValueError, match="one integer action per step"):
        broken(actions=np.zeros(5, np.float32))
    with pytest.raises(ValueError, match='no extra model output "sampled_actions"'):
        broken(actions=np.zeros((5, 2), np.int64))
    sampled = np.zeros((5, 4, 3), np.float32)
    with pytest.raises(ValueError, match=r"sampled_actions \[T, A, D\], got \(5, 2\), \(5, 4\) and \(5, 4, 3\)"):
        broken(actions=np.zeros((5, 2), np.float32), extra={**good.extra, "sampled_actions": sampled})
    with pytest.raises(ValueError, match=r"visit_policy \[T, A\]"):
        broken(extra={**good.extra, "visit_policy": good.extra["root_value"]})
    replay = make_replay()
    replay.add([good])
    with pytest.raises(ValueError, match="does not fit those stored before"):
        replay.add([random_episode(np.random.default_rng(0), 5, id_="b", shape=(8, 8, 3))])


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics() -> None:
    replay = make_replay()
    empty = replay.get_metrics()
    assert empty["num_positions"] == empty["num_episodes"] == empty["num_bytes"] == empty["mean_priority"] == 0
    assert "beta" not in empty
    replay.add([random_episode(np.random.default_rng(0), 10, id_=str(i)) for i in range(3)])
    replay.update_priorities(np.arange(3), np.array([2.0, 3.0, 4.0]))
    replay.sample(4, beta=0.7)
    found = replay.get_metrics()
    assert (found["num_positions"], found["num_episodes"], found["beta"]) == (30, 3, 0.7)
    assert found["max_priority"] == 4
    assert found["mean_priority"] == pytest.approx((27 + 9) / 30)
    assert found["bytes_per_step"] == found["num_bytes"] / 30
    frames = [frame for episode in replay._episodes.values() for frame in episode.frames]
    assert sum(map(sys.getsizeof, frames)) < found["num_bytes"] < sum(map(sys.getsizeof, frames)) + 30 * 100


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="capacity of at least 1"):
        make_replay(0)
    with pytest.raises(ValueError, match="priority_exponent"):
        make_replay(priority_exponent=-1.0)
    with pytest.raises(ValueError, match="frame_stack >= 1"):
        PrioritizedReplay(10, frame_stack=0, unroll_steps=1, td_steps=1)
