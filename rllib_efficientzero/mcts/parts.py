"""The parts into which a batch of searches is split, which take turns on the device, and where their trees live."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rllib_efficientzero.mcts.config import SearchConfig
from rllib_efficientzero.mcts.device_tree import MAX_LANES, DeviceTree, has_triton
from rllib_efficientzero.mcts.extension import BatchedTree
from rllib_efficientzero.mcts.host_tree import host_tree
from rllib_efficientzero.mcts.leaf_evaluator import LeafEvaluator
from rllib_efficientzero.mcts.node_actions import EnumeratedActions, NodeActions, SampledActions, SampledRoots
from rllib_efficientzero.mcts.node_states import Model, NodeStates
from rllib_efficientzero.models.action_distributions import ActionDistribution
from rllib_efficientzero.models.cuda_graphs import record
from rllib_efficientzero.models.network import NetworkOutput

MIN_ROOTS_FOR_THREADS = 256
"""The fewest roots for several threads: with fewer, waking the threads takes longer than one thread's work."""

MOST_RECORDED = 64
"""The most simulations in one CUDA graph. Each adds some hundred kilobytes to it; on the other hand, a thread that
launches one graph never waits for Python's lock between its simulations."""


class Part(abc.ABC):
    """The searches of some roots of a batch."""

    rows: slice
    """The indices of its roots in the batch. Where they exceed the batch, the batch's last root is repeated."""
    tree: BatchedTree | DeviceTree
    num_launches: int
    """How many launches a search takes."""

    def begin(
        self,
        latent: Tensor,
        statistics: dict[str, np.ndarray],
        sampled: SampledRoots | None,
        *,
        noise_fraction: float,
        seed: int,
    ) -> None:
        """Starts a search from its roots, picked from those of the batch: `latent` `[B, ...]`, `statistics`, arrays
        `[B, ...]` for `BatchedTree.reset`, and sampled actions."""
        if self.rows != slice(0, len(latent)):
            chosen = np.minimum(np.arange(self.rows.start, self.rows.stop), len(latent) - 1)
            on_device = torch.from_numpy(chosen).to(latent.device, non_blocking=True)
            statistics = {name: array.take(chosen, axis=0) for name, array in statistics.items()}
            latent, sampled = latent[on_device], sampled and sampled.rows(on_device)
        self.tree.reset(**statistics, noise_fraction=noise_fraction, seed=seed)
        self._set_roots(latent, sampled)

    @abc.abstractmethod
    def launch(self, number: int) -> None:
        """Starts launch `number`, counted from 1, of one or more simulations; the launch before must be finished."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Waits for the last launch, and does the host's share of its simulations, if there is any."""

    @abc.abstractmethod
    def _set_roots(self, latents: Tensor, sampled: SampledRoots | None) -> None:
        """Sets the states of the roots."""


class HostPart(Part):
    """Trees on the host, leaves on the model's device."""

    tree: BatchedTree

    def __init__(self, rows: slice, model: Model, root: NetworkOutput, config: SearchConfig) -> None:
        self.rows, size = rows, rows.stop - rows.start
        self.num_launches = config.num_simulations
        actions, considered = _node_actions(model, root, config, size)
        self.evaluator = LeafEvaluator(model, root, size, config.num_simulations, config.value_prefix_horizon, actions)
        self.tree = host_tree(
            config,
            size,
            actions.num_actions,
            max_considered_actions=considered,
            first_root=rows.start,
            num_threads=config.num_threads if size >= MIN_ROOTS_FOR_THREADS else 1,
        )

    def launch(self, number: int) -> None:
        """Selects leaves and starts their evaluation."""
        self.evaluator.launch(number, *self.tree.select())

    def finish(self) -> None:
        """Waits for the evaluation, expands the leaves and backs their values up."""
        self.tree.expand_and_backup(*self.evaluator.collect())

    def _set_roots(self, latents: Tensor, sampled: SampledRoots | None) -> None:
        self.evaluator.set_roots(latents, sampled)


class DevicePart(Part):
    """Trees and leaves on one device: a search is one CUDA graph, or a few, and the host only waits for its results."""

    tree: DeviceTree

    def __init__(self, rows: slice, model: Model, root: NetworkOutput, config: SearchConfig) -> None:
        self.rows, size, device = rows, rows.stop - rows.start, root.latent.device
        self._num_recorded = _largest_divisor(config.num_simulations, at_most=MOST_RECORDED)
        self.num_launches = config.num_simulations // self._num_recorded
        actions, considered = _node_actions(model, root, config, size)
        self.tree = DeviceTree(
            size, actions.num_actions, config, device, max_considered_actions=considered, first_root=rows.start
        )
        self._states = NodeStates(model, root, size, config.num_simulations, actions, by_rows=True)
        recorded = None
        if getattr(model, "is_capturable", False):
            nothing = np.zeros((size, actions.num_actions), np.float32)
            reset = functools.partial(self.tree.reset, nothing, value=nothing[:, 0].copy(), seed=0)
            recorded = record(self._simulate, device=device, prepare=reset)
        self._replay = self._simulate if recorded is None else recorded[0]

    def launch(self, number: int) -> None:
        """Enqueues one CUDA graph of whole simulations; `number` is not needed, since the trees count simulations."""
        self._replay()

    def finish(self) -> None:
        """Does nothing: the whole simulation runs on the device."""

    def _set_roots(self, latents: Tensor, sampled: SampledRoots | None) -> None:
        self._states.set_roots(latents, sampled)

    def _simulate(self) -> None:
        for _ in range(self._num_recorded):
            self.tree.select()
            # The slot 0 is ignored, since states are written by rows.
            self.tree.expand_and_backup(*self._states.evaluate(0, *self.tree.index.unbind()))


# --- How a batch is split --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a batch of searches is split into parts; results depend on it by rounding only."""

    split: Callable[[int], list[slice]]
    """Splits a batch of a given size into the rows of its parts."""
    part: Callable[[slice, Model, NetworkOutput, SearchConfig], Part] = HostPart


def whole(batch: int) -> list[slice]:
    """The batch in one part: for a CPU, where searching and evaluating cannot overlap."""
    return [slice(0, batch)]


def rounded(batch: int) -> list[slice]:
    """One part, rounded up so that few sizes occur: every size needs its own memory and CUDA graphs."""
    return whole(batch if batch <= 32 else -(-batch // 64) * 64)


def halves(batch: int) -> list[slice]:
    """A large batch in two parts, rounded up as well: the GPU evaluates the leaves of one while the host searches the
    trees of the other."""
    (part,) = rounded(batch)
    middle = part.stop // 2
    return [part] if part.stop < 128 else [slice(0, middle), slice(middle, part.stop)]


def layout_for(device: torch.device, num_actions: int, num_simulations: int) -> Layout:
    """The fastest layout for searches with a model on a device."""
    if device.type != "cuda":
        return Layout(whole)
    if max(num_actions, num_simulations) <= MAX_LANES and has_triton(device):
        return Layout(rounded, DevicePart)
    return Layout(halves)


# --- Helpers ---------------------------------------------------------------------------------------------------------


def distribution_of(model: Model) -> ActionDistribution | None:
    """The distribution from which a model's actions are sampled; None if actions are enumerated."""
    return getattr(model, "distribution", None)


def _largest_divisor(number: int, *, at_most: int) -> int:
    return next(divisor for divisor in range(min(number, at_most), 0, -1) if number % divisor == 0)


def _node_actions(model: Model, root: NetworkOutput, config: SearchConfig, batch: int) -> tuple[NodeActions, int]:
    """The node actions for searches from `batch` roots, and how many actions sequential halving starts with."""
    if (distribution := distribution_of(model)) is None:
        return EnumeratedActions(root.policy_logits.shape[1]), config.max_considered_actions
    return SampledActions(distribution, config, batch, root.latent.device), config.num_sampled_actions
