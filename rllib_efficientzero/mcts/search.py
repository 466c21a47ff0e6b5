"""The batched search loop: one leaf per root and simulation, all leaves evaluated in one network call.

The tree holds statistics only: on the host in C++ (`BatchedTree`), or on a GPU in Triton (`DeviceTree`). `NodeStates`
holds the nodes' states and calls the network.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rllib_efficientzero.mcts.actions import masked_softmax, sample_action
from rllib_efficientzero.mcts.config import SearchConfig
from rllib_efficientzero.mcts.device_tree import DeviceTree
from rllib_efficientzero.mcts.extension import BatchedTree
from rllib_efficientzero.mcts.host_tree import host_tree
from rllib_efficientzero.mcts.node_actions import SampledRoots, chosen, sample_roots
from rllib_efficientzero.mcts.node_states import Model
from rllib_efficientzero.mcts.parts import Layout, Part, distribution_of, layout_for
from rllib_efficientzero.models.action_distributions import ActionDistribution
from rllib_efficientzero.models.network import NetworkOutput

NO_LEGAL_ACTIONS = "legal actions cannot be given where actions are sampled"


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The results of a search at its B roots (numpy)."""

    action: np.ndarray  # the action to take: [B] int64, or [B, D] of the space's dtype
    index: np.ndarray  # [B] int64: the action's number among the A actions
    visit_counts: np.ndarray  # [B, A] int32
    policy: np.ndarray  # [B, A] float32: the policy target; sums to 1
    root_value: np.ndarray  # [B] float32
    qvalues: np.ndarray  # [B, A] float32
    network_value: np.ndarray  # [B] float32: the value head's own estimate of the root
    prior: np.ndarray  # [B, A] float32: the policy head's probabilities, without noise; 1 / A for sampled actions
    seconds: float
    candidates: np.ndarray | None = None  # [B, A, D] float32: the sampled actions; None where all are enumerated

    def __len__(self) -> int:
        return len(self.action)


def _puct_noise(rng: np.random.Generator, shape: tuple[int, int], config: SearchConfig) -> dict[str, np.ndarray]:
    noise = rng.dirichlet(np.full(shape[1], config.dirichlet_alpha), size=shape[0])
    return {"noise": noise.astype(np.float32)}


def _gumbel_noise(rng: np.random.Generator, shape: tuple[int, int], config: SearchConfig) -> dict[str, np.ndarray]:
    return {"gumbel": rng.gumbel(size=shape).astype(np.float32)}


_ROOT_NOISE: dict[str, Callable[[np.random.Generator, tuple[int, int], SearchConfig], dict[str, np.ndarray]]] = {
    "puct": _puct_noise,
    "gumbel": _gumbel_noise,
}


def _enumerated_roots(
    root: NetworkOutput,
    legal_actions: np.ndarray | None,
    config: SearchConfig,
    rng: np.random.Generator,
    *,
    explore: bool,
) -> dict[str, np.ndarray]:
    """The arguments of `BatchedTree.reset` for enumerated actions."""
    statistics = _with_legal_actions(_on_host(root), legal_actions)
    if explore:
        statistics |= _ROOT_NOISE[config.policy](rng, statistics["policy_logits"].shape, config)
    return statistics


def _sampled_roots(
    root: NetworkOutput,
    distribution: ActionDistribution,
    config: SearchConfig,
    rng: np.random.Generator,
    *,
    explore: bool,
) -> tuple[dict[str, np.ndarray], SampledRoots]:
    """The arguments of `BatchedTree.reset` for sampled actions, and these actions.

    Their prior is uniform, since they are samples of the policy; and sequential halving needs no Gumbel noise, since
    drawing them is random already.
    """
    sampled = sample_roots(distribution, root.policy_logits, config, rng, explore=explore)
    shape = (len(root.value), config.num_sampled_actions)
    statistics = {"value": root.value.cpu().numpy(), "policy_logits": np.zeros(shape, np.float32)}
    if explore and config.policy == "puct":
        statistics |= _puct_noise(rng, shape, config)
    return statistics, sampled


class Searcher:
    """Searches with one configuration, and keeps the memory of recent batch sizes for the next searches."""

    MAX_BATCHES = 4

    def __init__(self, config: SearchConfig, layout: Layout | None = None) -> None:
        """`layout` says where trees live and how batches are split; None: the fastest for the model's device."""
        if config.policy not in _ROOT_NOISE:
            raise ValueError(f"unknown search policy {config.policy!r}; known ones are {sorted(_ROOT_NOISE)}")
        self.config = config
        self._layout = layout
        self._parts: dict[tuple, list[Part]] = {}
        self._last: list[Part] = []

    @torch.inference_mode()
    def search(
        self,
        model: Model,
        root: NetworkOutput,
        *,
        legal_actions: np.ndarray | None = None,
        rng: np.random.Generator,
        explore: bool,
        temperature: float = 0.0,
    ) -> SearchResult:
        """Search from evaluated roots.

        Args:
            model: in eval mode, on the device of `root`.
            root: `model.initial_inference` of B observations.
            legal_actions: `[B, A]` bool; None means that all are legal.
            rng: the only source of randomness.
            explore: add Dirichlet ("puct") or Gumbel ("gumbel") noise at the roots. Actions are sampled anew in any
                case; without `explore`, the policy's likeliest action is one of them.
            temperature: for choosing `action` in "puct"; 0 takes the most visited. "gumbel" ignores it and takes the
                action that sequential halving is left with.

        Raises:
            ValueError: a root has no legal action, legal actions are given though actions are sampled, or the model's
                outputs are not finite.
        """
        started = time.perf_counter()
        distribution, sampled = distribution_of(model), None
        if distribution is None:
            statistics = _enumerated_roots(root, legal_actions, self.config, rng, explore=explore)
        elif legal_actions is None:
            statistics, sampled = _sampled_roots(root, distribution, self.config, rng, explore=explore)
        else:
            raise ValueError(NO_LEGAL_ACTIONS)
        parts, seed = self._parts_for(model, root), int(rng.integers(2**63))
        for part in parts:
            part.begin(root.latent, statistics, sampled, noise_fraction=self.config.root_noise_fraction, seed=seed)
        self._simulate(parts)
        self._last = parts
        result = self._result(parts, statistics, rng, temperature, started)
        return result if distribution is None else _among(sampled, result, distribution)

    def node_table(self, row: int) -> dict[str, np.ndarray]:
        """The nodes of the tree of root `row` in the last search; see `BatchedTree.node_table`."""
        for part in self._last:
            if part.rows.start <= row < part.rows.stop:
                return part.tree.node_table(row - part.rows.start)
        raise IndexError(f"there was no root {row} in the last search")

    def _simulate(self, parts: list[Part]) -> None:
        """Runs all simulations of every part; while one part waits for the device, the host works on the next."""
        for part in parts:
            part.launch(1)
        for number in range(2, parts[0].num_launches + 1):
            for part in parts:
                part.finish()
                part.launch(number)
        for part in parts:
            part.finish()

    def _result(
        self,
        parts: list[Part],
        statistics: dict[str, np.ndarray],
        rng: np.random.Generator,
        temperature: float,
        started: float,
    ) -> SearchResult:
        batch = len(statistics["value"])

        def joined(of: Callable[[BatchedTree | DeviceTree], np.ndarray]) -> np.ndarray:
            found = [of(part.tree) for part in parts]
            return (found[0] if len(found) == 1 else np.concatenate(found))[:batch]

        visit_counts = joined(lambda tree: tree.visit_counts())
        if self.config.policy == "puct" and temperature > 0.0:
            action = sample_action(visit_counts, temperature, rng)
        else:
            action = joined(lambda tree: tree.selected_actions()).astype(np.int64)
        return SearchResult(
            action=action,
            index=action,
            visit_counts=visit_counts,
            policy=joined(lambda tree: tree.improved_policy()),
            root_value=joined(lambda tree: tree.root_values()),
            qvalues=joined(lambda tree: tree.qvalues()),
            network_value=statistics["value"],
            prior=masked_softmax(statistics["policy_logits"], statistics.get("legal_actions")),
            seconds=time.perf_counter() - started,
        )

    def __reduce__(self) -> tuple:
        """Pickles the configuration only, without the memory."""
        return Searcher, (self.config, self._layout)

    def _parts_for(self, model: Model, root: NetworkOutput) -> list[Part]:
        num_actions, num_simulations = root.policy_logits.shape[1], self.config.num_simulations
        layout = self._layout or layout_for(root.latent.device, num_actions, num_simulations)
        slices = layout.split(len(root.value))
        key = (id(model), *(rows.stop for rows in slices), root.latent.dtype, root.latent.device)
        parts = self._parts.pop(key, None)
        if parts is None:
            parts = [layout.part(rows, model, root, self.config) for rows in slices]
            while len(self._parts) >= self.MAX_BATCHES:
                del self._parts[next(iter(self._parts))]
        # Re-inserting keeps the dict in order of last use.
        self._parts[key] = parts
        return parts


def search(
    model: Model,
    planes: Tensor,
    config: SearchConfig,
    *,
    legal_actions: np.ndarray | None = None,
    rng: np.random.Generator,
    explore: bool,
    temperature: float = 0.0,
) -> SearchResult:
    """Evaluate B observations (`models.observation_planes`) and search from them; see `Searcher.search`.

    For repeated searches keep a `Searcher`: it reuses its buffers.
    """
    with torch.inference_mode():
        root = model.initial_inference(planes)
    return Searcher(config).search(
        model, root, legal_actions=legal_actions, rng=rng, explore=explore, temperature=temperature
    )


def prior_alone(model: Model, root: NetworkOutput, legal_actions: np.ndarray | None = None) -> SearchResult:
    """The result of acting without a search: the policy head's likeliest action, and no visits.

    Raises:
        ValueError: as `Searcher.search` raises it.
    """
    started = time.perf_counter()
    distribution, candidates = distribution_of(model), None
    if distribution is not None and legal_actions is not None:
        raise ValueError(NO_LEGAL_ACTIONS)
    statistics = _with_legal_actions(_on_host(root), legal_actions)
    # A tree of roots alone checks the inputs as a search would.
    host_tree(SearchConfig(), *statistics["policy_logits"].shape, num_simulations=0).reset(**statistics)
    prior = masked_softmax(statistics["policy_logits"], legal_actions)
    action = index = prior.argmax(axis=1).astype(np.int64)
    if distribution is not None:
        no_noise = torch.zeros(len(action), 1, distribution.noise_size, device=root.policy_logits.device)
        candidates = distribution.sample(root.policy_logits, no_noise, 1.0).cpu().numpy()
        prior, index = np.ones_like(prior[:, :1]), np.zeros_like(index)
        action = chosen(candidates, index, distribution.dtype)
    return SearchResult(
        action=action,
        index=index,
        visit_counts=np.zeros(prior.shape, np.int32),
        policy=prior,
        root_value=statistics["value"],
        qvalues=np.zeros_like(prior),
        network_value=statistics["value"],
        prior=prior,
        seconds=time.perf_counter() - started,
        candidates=candidates,
    )


def _among(sampled: SampledRoots | None, result: SearchResult, distribution: ActionDistribution) -> SearchResult:
    """Replaces the action numbers in a result by the sampled actions."""
    assert sampled is not None
    candidates = sampled.candidates.cpu().numpy()
    action = chosen(candidates, result.index, distribution.dtype)
    return dataclasses.replace(result, action=action, candidates=candidates)


def _with_legal_actions(statistics: dict[str, np.ndarray], legal_actions: np.ndarray | None) -> dict[str, np.ndarray]:
    if legal_actions is None:
        return statistics
    return statistics | {"legal_actions": np.ascontiguousarray(legal_actions, dtype=np.bool_)}


def _on_host(root: NetworkOutput) -> dict[str, np.ndarray]:
    """Copies value and policy logits to the host, in one copy."""
    batch, num_actions = root.policy_logits.shape
    scalars = torch.cat((root.value, root.policy_logits.flatten())).cpu().numpy()
    return {"value": scalars[:batch], "policy_logits": scalars[batch:].reshape(batch, num_actions)}
