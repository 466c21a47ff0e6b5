import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_efficientzero.replay.sum_tree import SumTree


@given(capacity=st.integers(1, 70), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_equals_an_array_with_cumulative_sums(capacity: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tree, leaves = SumTree(capacity), np.zeros(capacity)
    for _ in range(8):
        indices = rng.integers(capacity, size=int(rng.integers(1, 2 * capacity + 1)))
        values = rng.integers(0, 5, size=len(indices)).astype(float)  # whole numbers: sums are exact in any order
        tree.set(indices, values)
        for index, value in zip(indices, values, strict=True):
            leaves[index] = value
        np.testing.assert_array_equal(tree.get(np.arange(capacity)), leaves)
        assert tree.total == leaves.sum()
    if leaves.sum() > 0:
        prefix_sums = np.append(rng.random(50) * leaves.sum(), [0.0])
        np.testing.assert_array_equal(
            tree.find(prefix_sums), np.searchsorted(np.cumsum(leaves), prefix_sums, side="right")
        )


def test_sums_do_not_drift() -> None:
    rng = np.random.default_rng(0)
    tree = SumTree(1000)
    for _ in range(500):
        tree.set(rng.integers(1000, size=64), 10.0 ** rng.uniform(-8, 8, size=64))
    fresh = SumTree(1000)
    fresh.set(np.arange(1000), tree.get(np.arange(1000)))
    assert tree.total == fresh.total


def test_never_finds_an_empty_leaf() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        tree = SumTree(37)
        leaves = np.where(rng.random(37) < 0.5, 0.0, 10.0 ** rng.uniform(-12, 12, size=37))
        leaves[rng.integers(37)] = 0.1
        tree.set(np.arange(37), leaves)
        prefix_sums = np.append(rng.random(50), [0.0, 1.0, np.nextafter(1.0, 0)]) * tree.total
        assert (leaves[tree.find(prefix_sums)] > 0).all()


def test_errors_are_sentences() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        SumTree(0)
    with pytest.raises(IndexError, match=r"\[0, 3\)"):
        SumTree(3).set(np.array([3]), np.array([1.0]))
    with pytest.raises(ValueError, match="nothing to find"):
        SumTree(3).find(np.array([0.0]))


def test_updating_256_of_a_million_takes_under_a_millisecond() -> None:
    rng = np.random.default_rng(0)
    tree = SumTree(1_000_000)
    tree.set(np.arange(1_000_000), rng.random(1_000_000))
    durations = []
    for _ in range(30):
        indices, values = rng.integers(1_000_000, size=256), rng.random(256)
        start = time.perf_counter()
        tree.set(indices, values)
        durations.append(time.perf_counter() - start)
    assert np.median(durations) < 1e-3
