"""The model's side of a search: the states of all nodes, and one network call per simulation.

Latents and LSTM states stay on the model's device, in pools `[(N + 1) * B, ...]` whose slot 0 (its first B rows)
belongs to the roots and slot s to the leaves of simulation s. Per simulation one small array of indices goes to the
device and one of scalars comes back. All memory but the network's own is allocated beforehand.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rllib_efficientzero.mcts.node_actions import EnumeratedActions, NodeActions, SampledRoots
from rllib_efficientzero.models.cuda_graphs import record
from rllib_efficientzero.models.network import NetworkOutput


class Model(Protocol):
    """What a search needs: an `InferenceNetwork`, or an `EfficientZeroNetwork` in eval mode.

    A model whose actions are sampled has the `distribution` of its policy head. A model that says
    `is_capturable = True` is called once, to record a CUDA graph, and never again: its weights may change in place
    only.
    """

    def initial_inference(self, planes: Tensor) -> NetworkOutput: ...

    def recurrent_inference(self, latent: Tensor, reward_hidden: Tensor, action: Tensor) -> NetworkOutput: ...


class LeafEvaluator:
    """Evaluates the leaves of B searches in lock step.

    `launch` says which leaves and starts, `collect` waits for the results. On a GPU there is time for other things in
    between.
    """

    def __init__(
        self,
        model: Model,
        root: NetworkOutput,
        batch: int,
        num_simulations: int,
        horizon: int,
        actions: NodeActions | None = None,
    ) -> None:
        """Args:
        model: on the device of `root`.
        root: an output of the model, of any batch size: states will be like it in shape, precision and layout.
        batch: B.
        num_simulations: N.
        horizon: the LSTM's state starts anew below nodes whose depth is a multiple of it.
        actions: what the nodes' actions stand for; None: enumerated ones.
        """
        self._model, self._batch = model, batch
        self._node_actions = actions or EnumeratedActions(root.policy_logits.shape[1])
        num_slots, num_actions = num_simulations + 1, self._node_actions.num_actions
        device = root.latent.device
        self._latents = _StatePool(root.latent, num_slots, batch, by_rows=device.type != "cpu")
        self._reward_hiddens = _StatePool(root.reward_hidden, num_slots, batch, by_rows=device.type != "cpu")
        # A root's LSTM state is zero, and so is one that starts anew: both are read from slot 0, which stays zero.
        self._reward_hiddens.slots[0].zero_()

        self._index = _Shared((4, batch), torch.int64, device)
        index = self._index.host.numpy()
        self._parent, self._state_parent, self._leaf, self._action = index
        self._rows = index[:3]
        self._device_index = self._index.device.unbind()
        self._own_row = np.arange(batch)
        self._depth, self._is_inside = np.empty_like(self._own_row), np.empty_like(self._own_row)
        # EfficientZero, appendix A.1: the LSTM starts anew every `horizon` steps, below the node that ends a prefix. By
        # the leaf's depth, that of its parent being one less: 0 where it does.
        self._is_inside_of = np.minimum((np.arange(num_slots) - 1) % horizon, 1)
        self._scalars = _Shared((batch * (2 + num_actions),), torch.float32, device)
        scalars = self._scalars.host.numpy()
        self._results = (scalars[:batch], scalars[batch : 2 * batch], scalars[2 * batch :].reshape(batch, num_actions))

        self._done = torch.cuda.Event() if device.type == "cuda" else None
        self._stream: torch.cuda.Stream | None = None  # to ask for it takes a quarter of what a launch takes
        self._describe(1, *np.zeros((3, batch), dtype=np.int32))  # where a recording may write
        recorded = record(lambda: self._evaluate(1)) if getattr(model, "is_capturable", False) else None
        self._replay = None if recorded is None else recorded[0]

    def set_roots(self, latents: Tensor, sampled: SampledRoots | None = None) -> None:
        """Begin with `[B, ...]` latents and, where actions are sampled, those of the roots."""
        if self._done is not None:
            self._stream = torch.cuda.current_stream(latents.device)
        self._latents.slots[0].copy_(latents)
        self._node_actions.set_roots(sampled)

    def launch(self, slot: int, parent_slot: np.ndarray, action: np.ndarray, depth: np.ndarray) -> None:
        """Start to evaluate the leaves of simulation `slot`, what `BatchedTree.select` returned."""
        self._describe(slot, parent_slot, action, depth)
        if self._replay is None:
            self._evaluate(slot)
        else:
            self._replay()
        if self._done is not None:
            self._done.record(self._stream)

    def collect(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Value prefix `[B]`, value `[B]`, policy logits `[B, A]` of the leaves; the next `launch` writes over them."""
        if self._done is not None:
            self._done.synchronize()
        return self._results

    def _describe(self, slot: int, parent_slot: np.ndarray, action: np.ndarray, depth: np.ndarray) -> None:
        """Fill the index: rows of the parents in both pools and of the leaves, first as slots; and the actions.

        Arrays are copied into the type that they are computed with: numpy would allocate to convert on the way.
        """
        np.copyto(self._action, action)
        np.copyto(self._parent, parent_slot)
        self._leaf.fill(slot)
        np.copyto(self._depth, depth)
        np.take(self._is_inside_of, self._depth, out=self._is_inside, mode="clip")
        np.multiply(self._parent, self._is_inside, out=self._state_parent)
        np.multiply(self._rows, self._batch, out=self._rows)
        np.add(self._rows, self._own_row, out=self._rows)

    def _evaluate(self, slot: int) -> None:
        """What happens on the device."""
        self._index.upload()
        parent, state_parent, leaf, action = self._device_index
        output = self._model.recurrent_inference(
            self._latents.read(parent),
            self._reward_hiddens.read(state_parent),
            self._node_actions.taken(parent, action),
        )
        self._latents.write(slot, leaf, output.latent)
        self._reward_hiddens.write(slot, leaf, output.reward_hidden)
        logits = self._node_actions.open(leaf, output.policy_logits)
        torch.cat((output.value_prefix, output.value, logits.flatten()), out=self._scalars.device)
        self._scalars.download()


class _StatePool:
    """One kind of state of all nodes, and a place for those of the leaves' parents.

    By rows, writing takes many times as long on a CPU; by slot, a CUDA graph could write to one slot only.
    """

    def __init__(self, like: Tensor, num_slots: int, batch: int, *, by_rows: bool) -> None:
        self._by_rows = by_rows
        self._format = torch.contiguous_format
        if like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last):
            self._format = torch.channels_last
        pool, self._parents = self._empty(like, num_slots * batch), self._empty(like, batch)
        self.slots = pool.split(batch)
        self._rows, self._parent_rows = self._as_rows(pool), self._as_rows(self._parents)

    def read(self, rows: Tensor) -> Tensor:
        """States of `[B]` rows; the next call writes over them."""
        torch.index_select(self._rows, 0, rows, out=self._parent_rows)
        return self._parents

    def write(self, slot: int, rows: Tensor, states: Tensor) -> None:
        """Keep `[B, ...]` states of a slot, whose rows these are."""
        if self._by_rows:
            self._rows.index_copy_(0, rows, self._as_rows(states.to(self._rows.dtype)))
        else:
            self.slots[slot].copy_(states)

    def _empty(self, like: Tensor, count: int) -> Tensor:
        return torch.empty((count, *like.shape[1:]), dtype=like.dtype, device=like.device, memory_format=self._format)

    def _as_rows(self, states: Tensor) -> Tensor:
        """`[R, ...] -> [R, D]` without a copy, if they have the pool's layout."""
        states = states.contiguous(memory_format=self._format)
        return states.movedim(1, -1).flatten(1) if self._format == torch.channels_last else states.flatten(1)


class _Shared:
    """A tensor that the host reads or writes, pinned, and its counterpart on the device; on a CPU one and the same."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        is_host = device.type == "cpu"
        self.host = torch.zeros(shape, dtype=dtype, pin_memory=not is_host)
        self.device = self.host if is_host else torch.zeros(shape, dtype=dtype, device=device)

    def upload(self) -> None:
        if self.device is not self.host:
            self.device.copy_(self.host, non_blocking=True)

    def download(self) -> None:
        if self.device is not self.host:
            self.host.copy_(self.device, non_blocking=True)
