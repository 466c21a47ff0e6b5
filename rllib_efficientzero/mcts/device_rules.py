"""The search policies of a `DeviceTree`: each has a kernel that selects leaves, and computes its results in NumPy."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rllib_efficientzero.mcts.actions import by_columns, greedy_action, masked_softmax
from rllib_efficientzero.mcts.config import SearchConfig
from rllib_efficientzero.mcts.extension import BatchedTree

TINY = np.finfo(np.float32).tiny


@dataclasses.dataclass(frozen=True)
class RootResults:
    """The statistics of a search at its B roots; arrays `[B, A]` are in the order of `by_columns`."""

    row: np.ndarray  # [B, A]; see `tree_kernels`
    visits: np.ndarray  # [B, A] int32, visits of the children
    q: np.ndarray  # [B, A]; of unvisited actions 0, or after `completed` the policy's estimate
    value: np.ndarray  # [B], mean of the search
    raw_value: np.ndarray  # [B], of the network
    stretched_q: np.ndarray | None = None  # [B, A], what "gumbel" adds to logits


def power_of_two(least: int) -> int:
    """The smallest power of two that is at least `least`."""
    return 1 << max(0, least - 1).bit_length()


class PuctRules:
    """The policy "puct"; see `ctree/puct.hpp`."""

    rows_are_priors = True

    def __init__(
        self, config: SearchConfig, num_roots: int, num_actions: int, considered: int, device: torch.device
    ) -> None:
        visits = np.arange(config.num_simulations + 1)
        factor = config.pb_c_init + np.log((visits + config.pb_c_base + 1.0) / config.pb_c_base)
        exploration = np.maximum(factor * np.sqrt(np.maximum(visits, 1)), 1e-30).astype(np.float32)
        self._exploration = torch.from_numpy(exploration).to(device)
        self._random = torch.zeros(num_roots, dtype=torch.int64, device=device)
        self._options = {
            "SLOTS": power_of_two(config.num_simulations + 1),
            "VALUE_DELTA_MAX": config.value_delta_max,
            "UNIFORM_FIRST_VISIT": config.first_visit == "uniform",
            "RANDOM_TIES": config.tie_break == "random",
        }

    def reset(
        self,
        roots: BatchedTree,
        policy_logits: np.ndarray,
        legal_actions: np.ndarray | None,
        gumbel: np.ndarray | None,
        first_root: int,
        seed: int,
    ) -> np.ndarray:
        """Starts a search, and returns the roots' rows `[B, A]`. `roots` has been reset with the same arguments."""
        random = torch.from_numpy(_root_streams(seed, first_root, len(policy_logits)))
        self._random.copy_(random, non_blocking=True)
        return roots.improved_policy()

    def select(self, trees: dict[str, Tensor], options: dict[str, Any]) -> None:
        from rllib_efficientzero.mcts.tree_kernels import puct_select

        puct_select[(len(self._random),)](
            *_named(trees, "row", "child", "edge_visits", "edge_q", "node_q", "simulation"),
            self._random,
            self._exploration,
            *_named(trees, "index", "depth_of_leaf", "parent_of_leaf"),
            **options,
            **self._options,
            num_warps=1,
        )

    def priors(self, rows: np.ndarray) -> np.ndarray:
        """`[..., A]` rows of nodes -> their priors."""
        return rows

    def completed(self, found: RootResults) -> RootResults:
        """The results with Q values for all actions, as the other methods need them; "puct" needs no others."""
        return found

    def improved_policy(self, found: RootResults) -> np.ndarray:
        return (found.visits / found.visits.sum(axis=1, keepdims=True)).astype(np.float32)

    def selected_actions(self, found: RootResults) -> np.ndarray:
        return greedy_action(found.visits)


class GumbelRules:
    """The policy "gumbel"; see `ctree/gumbel.hpp`."""

    rows_are_priors = False

    def __init__(
        self, config: SearchConfig, num_roots: int, num_actions: int, considered: int, device: torch.device
    ) -> None:
        self._config, self._max_considered = config, min(considered, num_actions)
        table = [halving_schedule(count, config.num_simulations) for count in range(1, self._max_considered + 1)]
        schedule = np.array([table[0], *table], dtype=np.int32)
        self._schedule = torch.from_numpy(schedule).to(device)
        self._considered = torch.zeros(num_roots, dtype=torch.int32, device=device)
        self._gumbel = torch.zeros(num_roots, num_actions, device=device)
        self._noise = np.zeros((num_roots, num_actions), np.float32)
        self._options = {
            "C_VISIT": config.gumbel_c_visit,
            "C_SCALE": config.gumbel_c_scale,
            "MIN_Q_RANGE": config.gumbel_min_q_range,
        }

    def reset(
        self,
        roots: BatchedTree,
        policy_logits: np.ndarray,
        legal_actions: np.ndarray | None,
        gumbel: np.ndarray | None,
        first_root: int,
        seed: int,
    ) -> np.ndarray:
        """Starts a search, and returns the roots' rows `[B, A]`. `roots` has been reset with the same arguments."""
        noise = by_columns(np.zeros(policy_logits.shape, np.float32) if gumbel is None else gumbel)
        logits, num_legal = by_columns(policy_logits), np.full(len(policy_logits), policy_logits.shape[1])
        if legal_actions is not None:
            legal = by_columns(legal_actions.astype(bool))
            noise, logits = np.where(legal, noise, np.float32(-np.inf)), np.where(legal, logits, -np.inf)
            num_legal = legal.sum(axis=1)
        self._noise = noise
        self._gumbel.copy_(torch.from_numpy(np.ascontiguousarray(noise)), non_blocking=True)
        considered = np.minimum(num_legal, self._max_considered).astype(np.int32)
        self._considered.copy_(torch.from_numpy(considered), non_blocking=True)
        return (logits - logits.max(axis=1, keepdims=True)).astype(np.float32)

    def select(self, trees: dict[str, Tensor], options: dict[str, Any]) -> None:
        from rllib_efficientzero.mcts.tree_kernels import gumbel_select

        gumbel_select[(len(self._considered),)](
            *_named(trees, "row", "child", "edge_visits", "edge_q", "raw_value", "simulation"),
            self._gumbel,
            self._considered,
            self._schedule,
            *_named(trees, "index", "depth_of_leaf", "parent_of_leaf"),
            **options,
            **self._options,
            num_warps=1,
        )

    def priors(self, rows: np.ndarray) -> np.ndarray:
        """`[..., A]` rows of nodes -> their priors."""
        return masked_softmax(rows)

    def completed(self, found: RootResults) -> RootResults:
        """The results with Q values for all actions, as the other methods need them."""
        q = np.where(found.visits > 0, found.q, self._mixed_value(found)[:, None]).astype(np.float32)
        return dataclasses.replace(found, q=q, stretched_q=self._stretched(found.visits, q))

    def improved_policy(self, found: RootResults) -> np.ndarray:
        return masked_softmax(found.row + found.stretched_q).astype(np.float32)

    def selected_actions(self, found: RootResults) -> np.ndarray:
        scores = np.maximum(self._noise + found.row + found.stretched_q, -1e9)
        is_finalist = found.visits == found.visits.max(axis=1, keepdims=True)
        return np.where(is_finalist, scores, -np.inf).argmax(axis=1)

    def _mixed_value(self, found: RootResults) -> np.ndarray:
        """`[B]`: the value given to unvisited actions (Danihelka et al. 2022, appendix D)."""
        weights = np.where(found.visits > 0, np.maximum(np.exp(found.row), TINY), 0.0).astype(np.float64)
        visited_q = (weights * found.q).sum(axis=1) / np.maximum(weights.sum(axis=1), TINY)
        total = found.visits.sum(axis=1)
        return (found.raw_value + total * visited_q) / (total + 1)

    def _stretched(self, visits: np.ndarray, q: np.ndarray) -> np.ndarray:
        """`[B, A]` completed Q values -> normalised, times a scale that grows with the visits."""
        least = q.min(axis=1)
        spread = np.maximum(q.max(axis=1) - least, self._config.gumbel_min_q_range)
        scale = (self._config.gumbel_c_visit + visits.max(axis=1)) * self._config.gumbel_c_scale
        return (q - least[:, None]) * (scale / spread)[:, None]


def halving_schedule(num_considered: int, num_simulations: int) -> list[int]:
    """Sequential halving (Danihelka et al. 2022, figure 1): for each of N simulations, the number of visits that
    the root action which it selects has had before."""
    phases, visits, schedule = max(1, (num_considered - 1).bit_length()), 0, list[int]()
    while len(schedule) < num_simulations:
        for _ in range(max(1, num_simulations // (phases * num_considered))):
            schedule += [visits] * num_considered
            visits += 1
        num_considered = max(min(num_considered, 2), num_considered // 2)
    return schedule[:num_simulations]


def _named(trees: dict[str, Tensor], *names: str) -> list[Tensor]:
    return [trees[name] for name in names]


def _root_streams(seed: int, first_root: int, num_roots: int) -> np.ndarray:
    """`[B]` int64: initial states of the roots' random number streams, as `root_stream` in `ctree/random.hpp`."""

    def mixed(counter: np.ndarray) -> np.ndarray:
        x = counter + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    roots = np.arange(first_root, first_root + num_roots, dtype=np.uint64)
    return mixed(mixed(np.full(1, seed, dtype=np.uint64)) + roots).view(np.int64)
