"""The way of leaves between a tree on the host and the network on its device.

Per simulation one small array of indices goes to the device and one of scalars comes back.
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
        # EfficientZero, appendix A.1: the LSTM starts anew every `horizon` steps, below the node that ends a prefix. By
        # the leaf's depth, that of its parent being one less: 0 where it does.
        self._is_inside_of = np.minimum((np.arange(num_simulations + 1) - 1) % horizon, 1)
        self._scalars = _Shared((batch * (2 + num_actions),), torch.float32, device)
        scalars = self._scalars.host.numpy()
        self._results = (scalars[:batch], scalars[batch : 2 * batch], scalars[2 * batch :].reshape(batch, num_actions))

        self._done = torch.cuda.Event() if device.type == "cuda" else None
        self._stream: torch.cuda.Stream | None = None  # to ask for it takes a quarter of what a launch takes
        self._describe(1, *np.zeros((3, batch), dtype=np.int32))  # where a recording may write
        recorded = None
        if getattr(model, "is_capturable", False):
            recorded = record(lambda: self._evaluate(1), device=device)
        self._replay = None if recorded is None else recorded[0]

    def set_roots(self, latents: Tensor, sampled: SampledRoots | None = None) -> None:
        """Begin with `[B, ...]` latents and, where actions are sampled, those of the roots."""
        if self._done is not None:
            self._stream = torch.cuda.current_stream(latents.device)
        self._states.set_roots(latents, sampled)

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
        value_prefix, value, logits = self._states.evaluate(slot, *self._device_index)
        torch.cat((value_prefix, value, logits.flatten()), out=self._scalars.device)
        self._scalars.download()


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
