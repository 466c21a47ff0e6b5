"""Reanalysis end to end: a real replay of random episodes, a network of known values, targets by brute force."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from brute_force import Episode, n_step_target, value_prefix
from reanalyze_helpers import (
    FRAME_STACK,
    GAMMA,
    NUM_ACTIONS,
    TD_STEPS,
    UNROLL_STEPS,
    ReadingNetwork,
    Stored,
    searched_value,
    store,
)

from rllib_efficientzero.mcts import SearchConfig, Searcher
from rllib_efficientzero.replay import Windows
from rllib_efficientzero.targets import ReanalyzeConfig, Reanalyzer, TargetStatistics, reanalyze

SIMULATIONS = 4
ENDS = [(23, "terminated"), (17, "truncated"), (20, "ongoing"), (1, "terminated"), (2, "truncated"), (7, "terminated")]
NUM_POSITIONS = sum(length for length, _ in ENDS)
STEPS = range(UNROLL_STEPS + 1)


def reanalyzer(**settings: Any) -> Reanalyzer:
    search = SearchConfig(
        num_simulations=SIMULATIONS,
        discount=GAMMA,
        value_prefix_horizon=settings.pop("value_prefix_horizon", 5),
        policy=settings.pop("policy", "puct"),
    )
    sizes = {"frame_stack": FRAME_STACK, "unroll_steps": UNROLL_STEPS, "td_steps": TD_STEPS}
    return Reanalyzer(ReanalyzeConfig(search=search, **{**sizes, "reanalyze_ratio": 1.0, "batch_size": 64, **settings}))


def make(stored: Stored, *, num_updates: int = 0, **settings: Any) -> tuple[Windows, dict[str, Any], TargetStatistics]:
    """All positions of the replay as one batch, with numpy targets."""
    windows = stored.replay.sample(len(stored.replay), beta=0.4)
    batch, statistics = reanalyzer(**settings).train_batch(ReadingNetwork().eval(), windows, num_updates=num_updates)
    return windows, {key: value.numpy() for key, value in batch.items()}, statistics


@pytest.fixture
def stored() -> Stored:
    return store(np.random.default_rng(0), ENDS)


def assert_values(
    stored: Stored, windows: Windows, found: np.ndarray, horizon: np.ndarray, gamma: float = GAMMA, of: Any = None
) -> None:
    """Every trained value target equals the loop; `of` maps network values to the bootstraps."""
    for row, (number, t) in enumerate(stored.locate(windows)):
        episode = stored.episodes[number]
        if of is not None:
            episode = Episode(episode.rewards, of(episode.values), episode.terminated)
        for k in STEPS:
            if t + k <= len(episode):
                expected = n_step_target(episode, t + k, int(horizon[row]), gamma)
                assert found[row, k] == pytest.approx(expected, rel=1e-4, abs=1e-4), (number, t, k)
            else:
                assert np.isfinite(found[row, k])


# --- Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["puct", "gumbel"])
def test_network_values_by_brute_force(stored: Stored, policy: str) -> None:
    windows, batch, statistics = make(stored, value_target="network", policy=policy)
    assert len(windows) == NUM_POSITIONS
    assert statistics.horizon.tolist() == [5] * NUM_POSITIONS
    assert_values(stored, windows, batch["target_value"], statistics.horizon)


@pytest.mark.parametrize("policy", ["puct", "gumbel"])
def test_root_values_by_brute_force(stored: Stored, policy: str) -> None:
    windows, batch, statistics = make(stored, value_target="root", policy=policy)
    assert_values(
        stored, windows, batch["target_value"], statistics.horizon, of=lambda value: searched_value(value, SIMULATIONS)
    )


@pytest.mark.parametrize("value_target", ["network", "root"])
def test_the_horizon_of_each_sample_follows_its_age(stored: Stored, value_target: str) -> None:
    windows, batch, statistics = make(stored, value_target=value_target, horizon_decay_steps=15.0)
    age = stored.replay.num_added - windows.position_ids
    assert age.min() == 1
    expected = [max(1, 5 - a // 15) for a in age]
    assert statistics.horizon.tolist() == expected
    assert set(expected) == {1, 2, 3, 4, 5}
    of = None if value_target == "network" else lambda value: searched_value(value, SIMULATIONS)
    assert_values(stored, windows, batch["target_value"], np.array(expected), of=of)


def test_mixed_takes_the_search_at_old_positions_and_returns_at_recent_ones(stored: Stored) -> None:
    recent = 30
    settings = {"value_target": "mixed", "mixed_start_updates": 10, "mixed_recent_steps": recent}
    windows, early, statistics = make(stored, num_updates=9, **settings)
    assert_values(stored, windows, early["target_value"], statistics.horizon)

    windows, batch, statistics = make(stored, num_updates=10, **settings)
    is_old = stored.replay.num_added - windows.position_ids > recent
    assert is_old.sum() == NUM_POSITIONS - recent
    for row, (number, t) in enumerate(stored.locate(windows)):
        episode = stored.episodes[number]
        for k in STEPS:
            found = batch["target_value"][row, k]
            if is_old[row] and t + k < len(episode):
                assert found == pytest.approx(searched_value(episode.values[t + k], SIMULATIONS), rel=1e-4, abs=1e-4)
            elif t + k <= len(episode):
                assert found == pytest.approx(n_step_target(episode, t + k, 5, GAMMA), rel=1e-4, abs=1e-4)


def test_mixed_keeps_returns_where_no_search_was_made(stored: Stored) -> None:
    settings = {"value_target": "mixed", "mixed_start_updates": 0, "mixed_recent_steps": 0, "reanalyze_ratio": 0.0}
    windows, batch, statistics = make(stored, **settings)
    assert statistics.num_searched == 0
    assert_values(stored, windows, batch["target_value"], statistics.horizon)


def test_mixed_encodes_no_bootstraps_of_old_positions(stored: Stored) -> None:
    """Late in a run nearly all positions are old: only what is searched is encoded."""
    windows = stored.replay.sample(40, beta=0.4)
    encoded = {}
    for num_updates in (9, 10):
        settings = {"value_target": "mixed", "mixed_start_updates": 10, "mixed_recent_steps": 0}
        network = ReadingNetwork().eval()
        _, statistics = reanalyzer(**settings).train_batch(network, windows, num_updates=num_updates)
        encoded[num_updates] = sum(network.encoded)
    # At the end of an episode that goes on there is no search, and so the value of its last observation.
    ends = np.count_nonzero((windows.steps_left <= UNROLL_STEPS) & ~windows.terminated)
    assert encoded[10] == statistics.num_searched + ends
    assert encoded[9] > 1.3 * encoded[10]


def test_an_unknown_value_target_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"unknown value_target 'td'.*mixed.*network.*root"):
        reanalyzer(value_target="td")


# --- Value prefixes, masks and what is passed on ---------------------------------------------------------------------


@pytest.mark.parametrize("horizon", [1, 3, 5])
def test_value_prefixes_by_brute_force(stored: Stored, horizon: int) -> None:
    windows, batch, _ = make(stored, value_prefix_horizon=horizon)
    for row, (number, t) in enumerate(stored.locate(windows)):
        expected = [value_prefix(stored.episodes[number], t, k, horizon) for k in range(UNROLL_STEPS)]
        np.testing.assert_allclose(batch["target_value_prefix"][row], expected, rtol=1e-5, atol=1e-5)


def test_masks_and_what_is_passed_on(stored: Stored) -> None:
    windows, batch, _ = make(stored)
    for row, (number, t) in enumerate(stored.locate(windows)):
        left = len(stored.episodes[number]) - t
        assert batch["mask"][row].tolist() == [float(k < left) for k in range(UNROLL_STEPS)]
        ids = batch["frames"][row, :, 1]
        last = len(stored.episodes[number])
        expected = [100 * number + min(max(t + j, 0), last) for j in range(-(FRAME_STACK - 1), UNROLL_STEPS + 1)]
        assert ids.tolist() == expected
    np.testing.assert_array_equal(batch["actions"], windows.actions)
    np.testing.assert_array_equal(batch["weights"], windows.weights)
    np.testing.assert_array_equal(batch["position_ids"], windows.position_ids)
    assert batch["actions"].dtype == np.int64
    assert {batch[key].dtype.name for key in ("target_policy", "target_value", "target_value_prefix", "mask")} == {
        "float32"
    }
    assert batch["shift"].shape == (len(windows), 2, 2)
    assert batch["intensity"].shape == (len(windows), 2)


# --- Policies --------------------------------------------------------------------------------------------------------


def test_policies_are_searched_where_an_action_follows_and_zero_elsewhere(stored: Stored) -> None:
    windows, batch, statistics = make(stored)
    searched = 0
    for row, (number, t) in enumerate(stored.locate(windows)):
        for k in STEPS:
            policy = batch["target_policy"][row, k]
            if t + k < len(stored.episodes[number]):
                searched += 1
                assert policy.sum() == pytest.approx(1.0, abs=1e-5)
                shares = policy * SIMULATIONS
                np.testing.assert_allclose(shares, shares.round(), atol=1e-5)  # visits of a fresh search
            else:
                assert policy.tolist() == [0.0] * NUM_ACTIONS
    assert statistics.num_searched == searched
    values = [
        stored.episodes[number].values[t + k]
        for number, t in stored.locate(windows)
        for k in STEPS
        if t + k < len(stored.episodes[number])
    ]
    assert statistics.network_value == pytest.approx(np.mean(values), rel=1e-4)


def test_searches_follow_the_network_of_their_own_frame(stored: Stored) -> None:
    """Rows and times are not mixed up: the favourite action of each frame gets the most visits, noise or not."""
    windows, batch, _ = make(stored, policy="gumbel")
    hits = [
        batch["target_policy"][row, k].argmax() == (100 * number + t + k) % NUM_ACTIONS
        for row, (number, t) in enumerate(stored.locate(windows))
        for k in STEPS
        if t + k < len(stored.episodes[number])
    ]
    assert np.mean(hits) > 0.95


def test_253_of_256_samples_are_searched_afresh() -> None:
    stored = store(np.random.default_rng(1), [(300, "ongoing")], chunk=50)
    windows = stored.replay.sample(256, beta=0.4)
    batch, _ = reanalyzer(reanalyze_ratio=0.99).train_batch(ReadingNetwork().eval(), windows)
    inside = np.arange(UNROLL_STEPS + 1) < windows.steps_left[:, None]
    is_stored = (batch["target_policy"].numpy() == windows.visit_policy).all(axis=-1)
    kept = is_stored[:, 0]
    assert kept.sum() == 3
    assert np.all(is_stored[kept])
    assert not is_stored[~kept][inside[~kept]].any()


@pytest.mark.parametrize("value_target", ["network", "mixed"])
@pytest.mark.parametrize("policy", ["puct", "gumbel"])
def test_action_masks_are_respected(value_target: str, policy: str) -> None:
    stored = store(np.random.default_rng(2), ENDS, masks=True)
    windows, batch, _ = make(stored, value_target=value_target, policy=policy)
    for row, (number, t) in enumerate(stored.locate(windows)):
        for k in range(min(UNROLL_STEPS + 1, len(stored.episodes[number]) - t)):
            illegal = stored.masks[number][t + k] == 0
            assert np.all(batch["target_policy"][row, k][illegal] == 0)
            assert batch["target_policy"][row, k].sum() == pytest.approx(1.0, abs=1e-5)


def test_root_values_with_action_masks_are_searched_beyond_the_unroll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bootstraps stand as far as K + n after the sampled position, and their legal actions must be known there."""
    given: list[tuple[list[float], np.ndarray]] = []
    real = Searcher.search

    def spy(self: Searcher, model: Any, root: Any, **kwargs: Any) -> Any:
        given.append((root.latent[:, 1].tolist(), kwargs["legal_actions"]))
        return real(self, model, root, **kwargs)

    monkeypatch.setattr(Searcher, "search", spy)
    stored = store(np.random.default_rng(2), ENDS, masks=True)
    windows, batch, statistics = make(stored, value_target="root")
    assert_values(
        stored, windows, batch["target_value"], statistics.horizon, of=lambda value: searched_value(value, SIMULATIONS)
    )
    for ids, legal in given:
        for frame, row in zip(ids, legal, strict=True):
            np.testing.assert_array_equal(row, stored.masks[int(frame) // 100][int(frame) % 100].astype(bool))


# --- Stateless, and in pieces ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value_target", ["network", "root", "mixed"])
def test_the_same_windows_give_the_same_targets(stored: Stored, value_target: str) -> None:
    windows = stored.replay.sample(40, beta=0.4)
    other = stored.replay.sample(40, beta=0.4)
    network = ReadingNetwork().eval()
    settings = {"value_target": value_target, "reanalyze_ratio": 0.5, "mixed_start_updates": 0}
    used = reanalyzer(**settings)
    first, _ = used.train_batch(network, windows)
    used.train_batch(network, other)
    for again, _ in (used.train_batch(network, windows), reanalyzer(**settings).train_batch(network, windows)):
        assert again.keys() == first.keys()
        for key, value in first.items():
            assert torch.equal(value, again[key]), key


def test_another_seed_gives_other_searches(stored: Stored) -> None:
    windows = stored.replay.sample(40, beta=0.4)
    network = ReadingNetwork().eval()
    first, _ = reanalyzer().train_batch(network, windows)
    other, _ = reanalyzer().train_batch(network, dataclasses.replace(windows, seed=windows.seed ^ 1))
    assert not torch.equal(first["target_policy"], other["target_policy"])
    assert torch.equal(first["target_value"], other["target_value"])


def test_new_weights_give_other_values(stored: Stored) -> None:
    windows = stored.replay.sample(40, beta=0.4)
    network, reanalyze = ReadingNetwork().eval(), reanalyzer()
    before, _ = reanalyze.train_batch(network, windows)
    with torch.no_grad():
        network.bias += 1.0
    after, _ = reanalyze.train_batch(network, windows)
    bootstrapped = (windows.steps_left > 10) | ~windows.terminated
    assert bootstrapped.sum() > 10
    assert torch.all(after["target_value"][bootstrapped, 0] > before["target_value"][bootstrapped, 0])


@pytest.mark.parametrize("batch_size", [1, 7, 10_000])
@pytest.mark.parametrize("value_target", ["network", "root"])
def test_memory_is_bounded_and_values_do_not_depend_on_it(stored: Stored, batch_size: int, value_target: str) -> None:
    windows = stored.replay.sample(40, beta=0.4)
    network = ReadingNetwork().eval()
    batch, statistics = reanalyzer(batch_size=batch_size, value_target=value_target).train_batch(network, windows)
    assert max(network.encoded) <= batch_size
    of = None if value_target == "network" else lambda value: searched_value(value, SIMULATIONS)
    assert_values(stored, windows, batch["target_value"].numpy(), statistics.horizon, of=of)


@pytest.mark.parametrize("value_target", ["network", "root"])
def test_each_observation_is_encoded_once(stored: Stored, value_target: str) -> None:
    windows = stored.replay.sample(40, beta=0.4)
    network = ReadingNetwork().eval()
    reanalyzer(value_target=value_target).train_batch(network, windows)
    needed = set()
    for row, (number, t) in enumerate(stored.locate(windows)):
        length = len(stored.episodes[number])
        times = {k for k in STEPS if t + k < length} | {min(k + 5, length - t) for k in STEPS}
        needed |= {(row, k) for k in times if t + k < length or not stored.episodes[number].terminated}
    assert sum(network.encoded) == len(needed)


def test_targets_can_be_trained_on(stored: Stored) -> None:
    """Made in inference mode, but no inference tensors: autograd could not save them."""
    windows = stored.replay.sample(8, beta=0.4)
    batch, _ = reanalyzer().train_batch(ReadingNetwork().eval(), windows)
    assert not any(value.is_inference() for value in batch.values())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_observations_that_are_not_finite_spoil_their_own_targets_only(stored: Stored, bad: float) -> None:
    """The learner's guard has to see them; a search from them would be an error instead."""
    windows = stored.replay.sample(40, beta=0.4)
    frames = windows.frames.copy()
    frames[3, FRAME_STACK - 1] = bad
    batch, _ = reanalyzer().train_batch(ReadingNetwork().eval(), dataclasses.replace(windows, frames=frames))
    is_bad = ~torch.isfinite(batch["target_policy"]).all(dim=-1)
    assert is_bad.nonzero().tolist() == [[3, 0]]


def test_arrays_come_apart_as_they_were_put_together_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reanalyze, "_to", lambda array, device: torch.from_numpy(array))
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.random((3, 2, 5)).astype(np.float32),
        "b": rng.integers(9, size=(3, 2)),
        "c": np.asfortranarray(rng.random((3, 4)).astype(np.float32)),
        "d": rng.integers(9, size=3),
        "e": rng.random(3),
    }
    sent = reanalyze._sent(arrays, torch.device("meta"))
    assert set(sent) == set(arrays)
    for name, array in arrays.items():
        assert sent[name].numpy().dtype == array.dtype
        np.testing.assert_array_equal(sent[name].numpy(), array)
