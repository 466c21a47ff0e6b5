"""Searches among sampled actions, with models whose best actions are known."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rllib_efficientzero.mcts import SearchConfig, Searcher, SearchResult
from rllib_efficientzero.mcts.node_actions import sample_roots, widened
from rllib_efficientzero.mcts.parts import Layout, halves
from rllib_efficientzero.models.action_distributions import (
    ActionDistribution,
    IndependentCategoricals,
    SquashedGaussian,
)
from rllib_efficientzero.models.network import NetworkOutput


class Target:
    """Every step is worth how near its action is to `best`; the policy is the same everywhere. The latent is the sum of
    the actions taken, so that a search that mixes up actions gets other rewards."""

    def __init__(self, distribution: ActionDistribution, best: list[float], policy: list[float] | None = None) -> None:
        self.distribution = distribution
        self.best = torch.tensor(best)
        self.policy = torch.zeros(distribution.policy_size) if policy is None else torch.tensor(policy)
        self.taken: list[Tensor] = []

    def roots(self, batch: int) -> NetworkOutput:
        return self._output(torch.zeros(batch, len(self.best)), torch.zeros(batch, 2), torch.zeros(batch))

    def recurrent_inference(self, latent: Tensor, reward_hidden: Tensor, action: Tensor) -> NetworkOutput:
        self.taken.append(action.clone())
        reward = -(action - self.best).square().sum(dim=1)
        return self._output(latent + action, reward_hidden, reward)

    def _output(self, latent: Tensor, reward_hidden: Tensor, reward: Tensor) -> NetworkOutput:
        policy = self.policy.expand(len(latent), -1)
        return NetworkOutput(latent, reward_hidden, torch.zeros(len(latent)), reward, policy)


GAUSSIAN = SquashedGaussian(2)
SETTINGS: dict[str, Any] = {"policy": "gumbel", "num_simulations": 32, "value_prefix_horizon": 1, "discount": 0.5}


def run(
    model: Any, batch: int, *, seed: int = 0, explore: bool = True, split: Any = None, **given: Any
) -> SearchResult:
    searcher = Searcher(SearchConfig(**(SETTINGS | given)), split and Layout(split))
    return searcher.search(model, model.roots(batch), rng=np.random.default_rng(seed), explore=explore)


def assert_same(first: SearchResult, second: SearchResult, rows: slice = slice(None)) -> None:
    for name in ("action", "visit_counts", "policy", "root_value", "qvalues", "candidates"):
        np.testing.assert_array_equal(getattr(first, name)[rows], getattr(second, name)[rows], err_msg=name)


@pytest.mark.parametrize("policy", ["gumbel", "puct"])
def test_the_best_of_the_sampled_actions_is_found(policy: str) -> None:
    result = run(Target(GAUSSIAN, [0.6, -0.4]), 20, policy=policy, num_simulations=100, discount=0.0)
    assert result.candidates is not None
    assert result.candidates.shape == (20, 16, 2)
    distance = np.square(result.candidates - [0.6, -0.4]).sum(axis=-1)
    rank = (distance < np.square(result.action - [0.6, -0.4]).sum(axis=-1)[:, None]).sum(axis=1)
    assert rank.mean() <= (0.0 if policy == "gumbel" else 2.0)  # 7.5 by chance
    assert result.policy.shape == (20, 16)
    np.testing.assert_allclose(result.policy.sum(axis=1), 1.0, rtol=1e-5)
    # More weight on what is nearer.
    assert (result.policy * distance).sum(axis=1).mean() < 0.5 * distance.mean()


def test_what_the_model_is_asked_are_the_candidates_of_the_parents() -> None:
    model = Target(GAUSSIAN, [0.0, 0.0])
    result = run(model, 3, num_simulations=16, num_sampled_actions=4)
    assert result.candidates is not None
    # The first four simulations visit the root's four actions in turn.
    first = torch.stack(model.taken[:4], dim=1).numpy()
    np.testing.assert_array_equal(first, result.candidates)
    # Those of other nodes are drawn at the node: from two actions each, none of them the root's.
    below = np.stack(
        [taken[0].numpy() for taken in model.taken if not (taken[0].numpy() == first[0]).all(axis=1).any()]
    )
    assert len(np.unique(below, axis=0)) == len(below) >= 4


def test_actions_below_the_root_are_at_most_so_many() -> None:
    # With one action each, whatever is not at the root is a chain.
    searcher = Searcher(SearchConfig(**(SETTINGS | {"num_sampled_actions": 2, "num_sampled_leaf_actions": 1})))
    model = Target(GAUSSIAN, [0.0, 0.0])
    searcher.search(model, model.roots(2), rng=np.random.default_rng(0), explore=True)
    for row in range(2):
        parents = searcher.node_table(row)["parent"][1:]
        children = np.bincount(parents[parents > 0])
        assert children.max() == 1


def test_completed_q_values_by_hand() -> None:
    # Two simulations visit two of four actions; the others count as the mixed value, with uniform priors.
    model = Target(GAUSSIAN, [0.2, 0.2])
    result = run(model, 1, num_simulations=2, num_sampled_actions=4)
    assert result.candidates is not None
    q = -np.square(result.candidates[0] - 0.2).sum(axis=-1)
    # v_mix = (v + N sum_visited(pi q) / sum_visited(pi)) / (1 + N), the network's v being 0
    mixed = (0.0 + 2 * q[:2].mean()) / 3
    completed = np.array([q[0], q[1], mixed, mixed])
    np.testing.assert_allclose(result.qvalues[0], completed, rtol=1e-5)
    spread = max(completed.max() - completed.min(), 0.01)
    scaled = (50 + 1) * 0.1 * (completed - completed.min()) / spread
    expected = np.exp(scaled) / np.exp(scaled).sum()
    np.testing.assert_allclose(result.policy[0], expected, rtol=1e-4)
    assert result.visit_counts[0].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(("share", "wide"), [(0.5, 8), (0.75, 12), (0.0, 0), (1.0, 16), (0.3, 4)])
def test_share_of_widened_actions(share: float, wide: int) -> None:
    assert widened(16, share).sum() == wide
    # Deviations from the mean are three times as large in the share that is widened, and the noise is the same.
    config = SearchConfig(num_sampled_actions=16, widened_action_share=share, widened_action_scale=3.0)
    narrow = SearchConfig(num_sampled_actions=16, widened_action_share=0.0)
    policy = torch.tensor([[0.1, -0.2, -3.0, -3.0]]).expand(5, -1)
    both = [
        torch.atanh(sample_roots(GAUSSIAN, policy, given, np.random.default_rng(1), explore=True).candidates)
        - torch.atanh(torch.tanh(GAUSSIAN._moments(policy)[0]))[:, None]
        for given in (config, narrow)
    ]
    ratio = (both[0] / both[1]).mean(dim=(0, 2))
    np.testing.assert_allclose(ratio, np.where(widened(16, share), 3.0, 1.0), rtol=2e-3)


def test_without_exploration_the_likeliest_action_is_among_them() -> None:
    policy = [0.3, -0.7, 0.0, 0.0]
    for explore in (False, True):
        result = run(Target(GAUSSIAN, [0.0, 0.0], policy), 4, explore=explore)
        assert result.candidates is not None
        likeliest = np.tanh(5.0 * np.tanh(np.array(policy[:2]) / 5.0))
        found = np.isclose(result.candidates, likeliest, atol=1e-6).all(axis=-1)
        assert found.tolist() == [[not explore] + [False] * 15] * 4


def test_choices_by_factors() -> None:
    result = run(
        Target(IndependentCategoricals([3, 4]), [2.0, 1.0]),
        10,
        num_sampled_actions=64,
        num_simulations=99,
        discount=0.0,
    )
    assert result.action.dtype == np.int64
    assert result.action.tolist() == [[2, 1]] * 10


@pytest.mark.parametrize("family", [GAUSSIAN, IndependentCategoricals([3, 4])])
def test_a_roots_search_does_not_depend_on_the_others(family: Any) -> None:
    best = [0.5, 1.0]
    whole = run(Target(family, best), 70)
    assert_same(whole, run(Target(family, best), 70))
    assert_same(whole, run(Target(family, best), 9), slice(0, 9))
    assert_same(whole, run(Target(family, best), 70, split=lambda batch: [slice(0, 33), slice(33, batch)]))
    assert_same(whole, run(Target(family, best), 70, split=halves))
    other = run(Target(family, best), 70, seed=1)
    assert not np.array_equal(other.candidates, whole.candidates)


def test_legal_actions_are_refused() -> None:
    model = Target(GAUSSIAN, [0.0, 0.0])
    with pytest.raises(ValueError, match="legal actions"):
        Searcher(SearchConfig(**SETTINGS)).search(
            model,  # type: ignore[arg-type]
            model.roots(1),
            legal_actions=np.ones((1, 16), bool),
            rng=np.random.default_rng(0),
            explore=True,
        )
