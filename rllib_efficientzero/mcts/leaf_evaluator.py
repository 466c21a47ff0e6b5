"""Evaluation of the leaves of trees on the host by the network on its device.

In each simulation, one small array of indices is copied to the device and one of scalars is copied back.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rllib_efficientzero.mcts.node_actions import EnumeratedActions, NodeActions, SampledRoots
from rllib_efficientzero.mcts.node_states import Model, NodeStates
from rllib_efficientzero.models.cuda_graphs import record
from rllib_efficientzero.models.network import NetworkOutput


class LeafEvaluator:
    """Evaluates the leaves of B searches in lock step.

    `launch` starts the evaluation of given leaves, `collect` waits for the results. On a GPU the host can do other work
    in between.
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
        root: an output of the model, of any batch size, as an example of the states' shape, precision and layout.
        batch: B.
        num_simulations: N.
        horizon: the LSTM's state is reset below nodes whose depth is a multiple of it.
        actions: maps the tree's action numbers to the model's actions; None: they are the same.
        """
        self._batch = batch
        device = root.latent.device
        actions = actions or EnumeratedActions(root.policy_logits.shape[1])
        num_actions, by_rows = actions.num_actions, device.type != "cpu"
        self._states = NodeStates(model, root, batch, num_simulations, actions, by_rows=by_rows)
        self._index = _Shared((4, batch), torch.int64, device)
        index = self._index.host.numpy()
        self._parent, self._state_parent, self._leaf, self._action = index
        self._rows = index[:3]
        self._device_index = self._index.device.unbind()
        self._own_row = np.arange(batch)
        self._depth, self._is_inside = np.empty_like(self._own_row), np.empty_like(self._own_row)
        # EfficientZero, appendix A.1: the LSTM is reset every `horizon` steps, below the node that ends a prefix. This
        # table is by the leaf's depth, its parent's depth plus one: 0 where the LSTM is reset, else 1.
        self._is_inside_of = np.minimum((np.arange(num_simulations + 1) - 1) % horizon, 1)
        self._scalars = _Shared((batch * (2 + num_actions),), torch.float32, device)
        scalars = self._scalars.host.numpy()
        self._results = (scalars[:batch], scalars[batch : 2 * batch], scalars[2 * batch :].reshape(batch, num_actions))

        self._done = torch.cuda.Event() if device.type == "cuda" else None
        self._stream: torch.cuda.Stream | None = None  # kept: asking torch for it takes a quarter of a launch's time
        self._describe(1, *np.zeros((3, batch), dtype=np.int32))  # valid rows for the calls that record the graph
        recorded = None
        if getattr(model, "is_capturable", False):
            recorded = record(lambda: self._evaluate(1), device=device)
        self._replay = None if recorded is None else recorded[0]

    def set_roots(self, latents: Tensor, sampled: SampledRoots | None = None) -> None:
        """Starts a search with the roots' latents `[B, ...]` and, if actions are sampled, their actions."""
        if self._done is not None:
            self._stream = torch.cuda.current_stream(latents.device)
        self._states.set_roots(latents, sampled)

    def launch(self, slot: int, parent_slot: np.ndarray, action: np.ndarray, depth: np.ndarray) -> None:
        """Starts the evaluation of the leaves of simulation `slot`, as `BatchedTree.select` returned them."""
        self._describe(slot, parent_slot, action, depth)
        if self._replay is None:
            self._evaluate(slot)
        else:
            self._replay()
        if self._done is not None:
            self._done.record(self._stream)

    def collect(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Waits for value prefix `[B]`, value `[B]` and policy logits `[B, A]`; the next `launch` overwrites them."""
        if self._done is not None:
            self._done.synchronize()
        return self._results

    def _describe(self, slot: int, parent_slot: np.ndarray, action: np.ndarray, depth: np.ndarray) -> None:
        """Fills the index with the rows of the parents in both pools, the rows of the leaves, and the actions.

        Rows are first written as slots, and then multiplied out in place. Inputs are copied to int64 first, since numpy
        would otherwise allocate memory to convert them.
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
        """Uploads the index, evaluates the leaves on the device and downloads the results; does not wait."""
        self._index.upload()
        value_prefix, value, logits = self._states.evaluate(slot, *self._device_index)
        torch.cat((value_prefix, value, logits.flatten()), out=self._scalars.device)
        self._scalars.download()


class _Shared:
    """A pinned tensor on the host and its counterpart on the device; on a CPU they are the same tensor."""

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
