"""The actions of a tree's nodes: the same enumerated actions at every node, or a few sampled ones at each.

The tree numbers the actions of every node from 0. If actions are sampled, as in Sampled MuZero and in EfficientZero V2,
those of a root are drawn from the policy and from a wider one, and all have the same prior; those of the nodes below
are fewer, and drawn from the policy at the node.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from rllib_efficientzero.mcts.config import SearchConfig
from rllib_efficientzero.models.action_distributions import ActionDistribution


class SampledRoots(NamedTuple):
    """The random numbers of the searches from B roots; those of a root do not depend on the other roots."""

    candidates: Tensor  # [B, A, D] actions of the roots
    leaf_noise: Tensor  # [B, N, M, Z] noise from which the M actions of each simulation's leaf are sampled

    def rows(self, rows: Tensor) -> SampledRoots:
        """Selects some of the roots."""
        return SampledRoots(self.candidates[rows], self.leaf_noise[rows])


class NodeActions(Protocol):
    """The actions of all nodes of B searches, on the model's device. A node's row is its row in the pools of states."""

    num_actions: int
    """A of the tree"""

    def set_roots(self, roots: SampledRoots | None) -> None:
        """Starts a search from these roots."""

    def taken(self, parent: Tensor, action: Tensor) -> Tensor:
        """Maps nodes' rows `[B]` and the tree's action numbers `[B]` to the actions that the model takes."""

    def expand(self, leaf: Tensor, policy: Tensor) -> Tensor:
        """Sets the actions of new nodes, given their rows `[B]` and policy head outputs; returns logits `[B, A]` for
        the tree."""


class EnumeratedActions:
    """Every node has all actions, so that nothing is stored."""

    def __init__(self, num_actions: int) -> None:
        self.num_actions = num_actions

    def set_roots(self, roots: SampledRoots | None) -> None: ...

    def taken(self, parent: Tensor, action: Tensor) -> Tensor:
        return action

    def expand(self, leaf: Tensor, policy: Tensor) -> Tensor:
        return policy


class SampledActions:
    """Every node has its own sampled actions: `num_sampled_actions` at a root, `num_sampled_leaf_actions` elsewhere."""

    def __init__(
        self, distribution: ActionDistribution, config: SearchConfig, batch: int, device: torch.device
    ) -> None:
        self._distribution, self._batch = distribution, batch
        self.num_actions = config.num_sampled_actions
        self._num_open = min(config.num_sampled_leaf_actions, self.num_actions)
        nodes = (config.num_simulations + 1) * batch
        self._actions = torch.zeros(nodes, self.num_actions, distribution.action_size, device=device)
        self._noise = torch.zeros(nodes, self._num_open, distribution.noise_size, device=device)
        self._logits = torch.full((batch, self.num_actions), -torch.inf, device=device)
        self._logits[:, : self._num_open] = 0.0

    def set_roots(self, roots: SampledRoots | None) -> None:
        assert roots is not None
        self._actions[: self._batch] = roots.candidates
        self._noise[self._batch :] = roots.leaf_noise.transpose(0, 1).flatten(0, 1)

    def taken(self, parent: Tensor, action: Tensor) -> Tensor:
        return self._actions.flatten(0, 1).index_select(0, parent * self.num_actions + action)

    def expand(self, leaf: Tensor, policy: Tensor) -> Tensor:
        sampled = self._distribution.sample(policy, self._noise.index_select(0, leaf), 1.0)
        self._actions[:, : self._num_open].index_copy_(0, leaf, sampled)
        return self._logits


def sample_roots(
    distribution: ActionDistribution, policy: Tensor, config: SearchConfig, rng: np.random.Generator, *, explore: bool
) -> SampledRoots:
    """Draws the root actions, and the noise for all leaf actions, of the searches from B roots.

    Args:
        distribution: of the policy head.
        policy: `[B, P]` its output at the roots.
        config: how many actions, and how wide.
        rng: all random numbers of a root are drawn together, so that they depend only on its index in the batch.
        explore: if False, the first action of every root is the policy's likeliest.
    """
    batch, num_actions = len(policy), config.num_sampled_actions
    num_open = min(config.num_sampled_leaf_actions, num_actions)
    noise = distribution.draw_noise(rng, (batch, num_actions + config.num_simulations * num_open))
    if not explore:
        noise[:, 0] = 0.0
    on_device = torch.from_numpy(noise).to(policy.device)
    is_wide = torch.from_numpy(widened(num_actions, config.widened_action_share)).to(policy.device)
    width = torch.where(is_wide, config.widened_action_scale, 1.0).unsqueeze(-1)
    candidates = distribution.sample(policy, on_device[:, :num_actions], width)
    return SampledRoots(candidates, on_device[:, num_actions:].unflatten(1, (config.num_simulations, num_open)))


def widened(num_actions: int, share: float) -> np.ndarray:
    """`[A]` bool: which of a root's actions come from the wider policy. They are spread evenly, and include the first
    action only if the share is 1."""
    reached = np.floor(np.arange(num_actions + 1) * share + 1e-9)
    return np.diff(reached) > 0


def chosen(candidates: np.ndarray, index: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Picks the actions `[B, D]` with the tree's numbers `index` `[B]` from the candidates `[B, A, D]`."""
    return candidates[np.arange(len(index)), index].astype(dtype)
