"""The batched search loop: one leaf per root and simulation, all leaves evaluated in one network call.

The tree (C++) holds statistics only. Latents and LSTM states stay on the model's device in one pool `[N + 1, B, ...]`
whose slot 0 is the root and slot s the leaf of simulation s; per simulation one small index array goes to the device
and one small array of scalars comes back.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rllib_efficientzero.mcts.actions import sample_action
from rllib_efficientzero.mcts.config import SearchConfig
from rllib_efficientzero.mcts.extension import BatchedTree
from rllib_efficientzero.models.network import NetworkOutput


class Model(Protocol):
    """What the search needs of a model; `EfficientZeroNetwork` in eval mode is one."""

    def initial_inference(self, planes: Tensor) -> NetworkOutput: ...

    def recurrent_inference(self, latent: Tensor, reward_hidden: Tensor, action: Tensor) -> NetworkOutput: ...


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What a search found at its B roots (numpy)."""

    action: np.ndarray  # [B] int64: to act with
    visit_counts: np.ndarray  # [B, A] int32
    policy: np.ndarray  # [B, A] float32: the policy target; sums to 1
    root_value: np.ndarray  # [B] float32
    qvalues: np.ndarray  # [B, A] float32
    network_value: np.ndarray  # [B] float32: the value head's own estimate of the root
    prior: np.ndarray  # [B, A] float32: the policy head's probabilities at the root, without noise
    seconds: float

    def __len__(self) -> int:
        return len(self.action)


def _puct_noise(rng: np.random.Generator, shape: tuple[int, int], config: SearchConfig) -> dict[str, object]:
    noise = rng.dirichlet(np.full(shape[1], config.dirichlet_alpha), size=shape[0])
    return {"noise": noise.astype(np.float32), "noise_fraction": config.root_noise_fraction}


def _gumbel_noise(rng: np.random.Generator, shape: tuple[int, int], config: SearchConfig) -> dict[str, object]:
    return {"gumbel": rng.gumbel(size=shape).astype(np.float32)}


_ROOT_NOISE: dict[str, Callable[[np.random.Generator, tuple[int, int], SearchConfig], dict[str, object]]] = {
    "puct": _puct_noise,
    "gumbel": _gumbel_noise,
}


class _Pool:
    """Latents and LSTM states of one batch of searches, with the arrays through which tree and device talk."""

    def __init__(self, root: NetworkOutput, config: SearchConfig) -> None:
        batch, num_actions = root.policy_logits.shape
        slots = config.num_simulations + 1
        device = root.latent.device
        pinned = device.type == "cuda"
        self.tree = BatchedTree(
            batch,
            num_actions,
            config.num_simulations,
            discount=config.discount,
            policy=config.policy,
            pb_c_init=config.pb_c_init,
            pb_c_base=config.pb_c_base,
            value_delta_max=config.value_delta_max,
            horizon=config.value_prefix_horizon,
            first_visit=config.first_visit,
            tie_break=config.tie_break,
            max_considered_actions=config.max_considered_actions,
            c_visit=config.gumbel_c_visit,
            c_scale=config.gumbel_c_scale,
            min_q_range=config.gumbel_min_q_range,
            num_threads=config.num_threads,
        )
        self.latents = root.latent.new_empty(slots * batch, *root.latent.shape[1:])
        self.reward_hiddens = root.reward_hidden.new_empty(slots * batch, *root.reward_hidden.shape[1:])
        self.batch, self.num_actions = batch, num_actions
        self._rows = np.arange(batch)
        # Rows: index of the parent in the pool, action, and 0 where the LSTM's state starts anew after this leaf.
        self._to_device = torch.empty(3, batch, dtype=torch.int64, pin_memory=pinned)
        self._to_device_array = self._to_device.numpy()
        self._from_device = torch.empty(batch * (2 + num_actions), dtype=torch.float32, pin_memory=pinned)
        array = self._from_device.numpy()
        self._value_prefix, self._value = array[:batch], array[batch : 2 * batch]
        self._policy_logits = array[2 * batch :].reshape(batch, num_actions)
        self._device = device

    def write(self, slot: int, output: NetworkOutput) -> None:
        rows = slice(slot * self.batch, (slot + 1) * self.batch)
        self.latents[rows] = output.latent
        self.reward_hiddens[rows] = output.reward_hidden

    def fetch(self, output: NetworkOutput) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One copy to the host: value prefix `[B]`, value `[B]`, policy logits `[B, A]`."""
        scalars = torch.cat((output.value_prefix, output.value, output.policy_logits.flatten()))
        self._from_device.copy_(scalars)
        return self._value_prefix, self._value, self._policy_logits

    def send(self, parent_slot: np.ndarray, action: np.ndarray, keeps_prefix: np.ndarray) -> Tensor:
        """One copy to the device: `[3, B]` int64."""
        np.multiply(parent_slot, self.batch, out=self._to_device_array[0])
        self._to_device_array[0] += self._rows
        self._to_device_array[1] = action
        self._to_device_array[2] = keeps_prefix
        return self._to_device.to(self._device, non_blocking=True)

    def simulate(self, model: Model, slot: int, horizon: int) -> None:
        """Select a leaf per root, evaluate all leaves, expand them and back their values up."""
        parent_slot, action, depth = self.tree.select()
        parent, actions, keeps_prefix = self.send(parent_slot, action, depth % horizon != 0)
        output = model.recurrent_inference(
            self.latents.index_select(0, parent), self.reward_hiddens.index_select(0, parent), actions
        )
        # EfficientZero, appendix A.1: the LSTM starts anew every `horizon` steps, below the leaf that ends a prefix.
        output = output._replace(reward_hidden=output.reward_hidden * keeps_prefix.unsqueeze(1))
        self.write(slot, output)
        self.tree.expand_and_backup(*self.fetch(output))


class Searcher:
    """Searches with one configuration and keeps the buffers of the last batch sizes for the next search."""

    MAX_POOLS = 4

    def __init__(self, config: SearchConfig) -> None:
        if config.policy not in _ROOT_NOISE:
            raise ValueError(f"unknown search policy {config.policy!r}; known ones are {sorted(_ROOT_NOISE)}")
        self.config = config
        self._pools: dict[tuple, _Pool] = {}

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
            explore: add Dirichlet ("puct") or Gumbel ("gumbel") noise at the roots.
            temperature: of `action` in "puct"; 0 takes the most visited. "gumbel" acts by its surviving candidate.

        Raises:
            ValueError: a root has no legal action, or the model's outputs are not finite.
        """
        started = time.perf_counter()
        pool = self._pool(root)
        _, value, policy_logits = pool.fetch(root)
        noise = _ROOT_NOISE[self.config.policy](rng, policy_logits.shape, self.config) if explore else {}
        pool.tree.reset(
            policy_logits,
            value=value,
            legal_actions=None if legal_actions is None else np.ascontiguousarray(legal_actions, dtype=np.bool_),
            seed=int(rng.integers(2**63)),
            **noise,
        )
        # Copies, before the first leaf is fetched into the same memory; after reset, which refuses what is not finite.
        network_value, prior = value.copy(), _masked_softmax(policy_logits, legal_actions)
        pool.write(0, root)
        for slot in range(1, self.config.num_simulations + 1):
            pool.simulate(model, slot, self.config.value_prefix_horizon)
        return self._result(pool.tree, network_value, prior, temperature, rng, started)

    def _result(
        self,
        tree: BatchedTree,
        network_value: np.ndarray,
        prior: np.ndarray,
        temperature: float,
        rng: np.random.Generator,
        started: float,
    ) -> SearchResult:
        visit_counts = np.array(tree.visit_counts())
        if self.config.policy == "puct" and temperature > 0.0:
            action = sample_action(visit_counts, temperature, rng)
        else:
            action = np.array(tree.selected_actions(), dtype=np.int64)
        return SearchResult(
            action=action,
            visit_counts=visit_counts,
            policy=np.array(tree.improved_policy()),
            root_value=np.array(tree.root_values()),
            qvalues=np.array(tree.qvalues()),
            network_value=network_value,
            prior=prior,
            seconds=time.perf_counter() - started,
        )

    def __reduce__(self) -> tuple[type[Searcher], tuple[SearchConfig]]:
        """Buffers stay behind."""
        return Searcher, (self.config,)

    def _pool(self, root: NetworkOutput) -> _Pool:
        key = (tuple(root.policy_logits.shape), root.latent.device, root.latent.dtype, tuple(root.latent.shape))
        pool = self._pools.pop(key, None)
        if pool is None:
            pool = _Pool(root, self.config)
            while len(self._pools) >= self.MAX_POOLS:
                del self._pools[next(iter(self._pools))]
        # Re-inserting keeps the dict in order of last use.
        self._pools[key] = pool
        return pool


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


def _masked_softmax(logits: np.ndarray, legal_actions: np.ndarray | None) -> np.ndarray:
    """`[B, A]` logits -> probabilities over the legal actions."""
    if legal_actions is not None:
        logits = np.where(legal_actions, logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)
