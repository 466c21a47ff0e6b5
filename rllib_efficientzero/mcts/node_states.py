"""The states of all nodes of a search, on the model's device, and the network call that makes new ones.

Latents and LSTM states are kept in pools `[(N + 1) * B, ...]`. Slot 0, the first B rows, holds the states of the roots,
slot s those of the leaves of simulation s. All memory but the network's own is allocated beforehand.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rllib_efficientzero.mcts.node_actions import NodeActions, SampledRoots
from rllib_efficientzero.models.network import NetworkOutput


class Model(Protocol):
    """What a search needs: an `InferenceNetwork`, or an `EfficientZeroNetwork` in eval mode.

    A model whose actions are sampled has the `distribution` of its policy head. A model with `is_capturable = True` is
    only called to record a CUDA graph, which is replayed from then on: its weights may change in place only.
    """

    def initial_inference(self, planes: Tensor) -> NetworkOutput: ...

    def recurrent_inference(self, latent: Tensor, reward_hidden: Tensor, action: Tensor) -> NetworkOutput: ...


class NodeStates:
    """The latents, LSTM states and actions of the nodes of B searches, which grow in lock step."""

    def __init__(
        self,
        model: Model,
        root: NetworkOutput,
        batch: int,
        num_simulations: int,
        actions: NodeActions,
        *,
        by_rows: bool,
    ) -> None:
        """Args:
        model: on the device of `root`.
        root: an output of the model, of any batch size, as an example of the states' shape, precision and layout.
        batch: B.
        num_simulations: N.
        actions: maps the tree's action numbers to the model's actions.
        by_rows: whether states are written to given rows or to a whole slot. By rows, writing takes many times as long
            on a CPU; by slot, a CUDA graph could only write to the slot that it was recorded with.
        """
        self._model, self._actions = model, actions
        num_slots = num_simulations + 1
        self._latents = _StatePool(root.latent, num_slots, batch, by_rows=by_rows)
        self._reward_hiddens = _StatePool(root.reward_hidden, num_slots, batch, by_rows=by_rows)
        # The LSTM state of a root and one that is reset are both zero: both are read from slot 0, which stays zero.
        self._reward_hiddens.slots[0].zero_()

    def set_roots(self, latents: Tensor, sampled: SampledRoots | None = None) -> None:
        """Starts a search with the roots' latents `[B, ...]` and, if actions are sampled, their actions."""
        self._latents.slots[0].copy_(latents)
        self._actions.set_roots(sampled)

    def evaluate(
        self, slot: int, parent: Tensor, state_parent: Tensor, leaf: Tensor, action: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluates leaves, and stores their states.

        Args:
            slot: of the leaves; ignored if states are written by rows.
            parent, state_parent: `[B]` rows from which to read the parents' latents and LSTM states.
            leaf: `[B]` rows of the leaves.
            action: `[B]` the tree's numbers of the actions that lead to the leaves.

        Returns:
            Value prefix `[B]`, value `[B]`, logits `[B, A]` of the tree's actions.
        """
        output = self._model.recurrent_inference(
            self._latents.read(parent),
            self._reward_hiddens.read(state_parent),
            self._actions.taken(parent, action),
        )
        self._latents.write(slot, leaf, output.latent)
        self._reward_hiddens.write(slot, leaf, output.reward_hidden)
        return output.value_prefix, output.value, self._actions.expand(leaf, output.policy_logits)


class _StatePool:
    """One kind of state of all nodes, and a buffer for the states of the leaves' parents."""

    def __init__(self, like: Tensor, num_slots: int, batch: int, *, by_rows: bool) -> None:
        self._by_rows = by_rows
        self._format = torch.contiguous_format
        if like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last):
            self._format = torch.channels_last
        pool, self._parents = self._empty(like, num_slots * batch), self._empty(like, batch)
        self.slots = pool.split(batch)
        self._rows, self._parent_rows = self._as_rows(pool), self._as_rows(self._parents)
        self._wide_rows = _widened(self._rows)

    def read(self, rows: Tensor) -> Tensor:
        """Gathers the states of rows `[B]`; the next call overwrites the result."""
        torch.index_select(self._rows, 0, rows, out=self._parent_rows)
        return self._parents

    def write(self, slot: int, rows: Tensor, states: Tensor) -> None:
        """Stores states `[B, ...]` in a slot, or in these rows of it if states are written by rows."""
        if self._by_rows:
            self._wide_rows.index_copy_(0, rows, _widened(self._as_rows(states.to(self._rows.dtype))))
        else:
            self.slots[slot].copy_(states)

    def _empty(self, like: Tensor, count: int) -> Tensor:
        return torch.empty((count, *like.shape[1:]), dtype=like.dtype, device=like.device, memory_format=self._format)

    def _as_rows(self, states: Tensor) -> Tensor:
        """`[R, ...] -> [R, D]`, without a copy if the states have the pool's layout."""
        states = states.contiguous(memory_format=self._format)
        return states.movedim(1, -1).flatten(1) if self._format == torch.channels_last else states.flatten(1)


def _widened(rows: Tensor) -> Tensor:
    """The same memory as int64 if row sizes allow it: the time of a copy by rows depends on the number of elements."""
    return rows.view(torch.int64) if rows.shape[1] * rows.element_size() % 8 == 0 else rows
