"""A gradient step on the device: forward and backward pass, clipping, the optimizer's step if all of it is finite."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from rllib_efficientzero import metrics as names
from rllib_efficientzero.models.cuda_graphs import GraphedFunction

Compute = Callable[[Mapping[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]
"""Train batch -> loss `[]`, and tensors to report about the update."""

FINITE = "finite"
"""Key of the flag that says whether the loss and the gradient were finite, and thus whether the step was taken."""


class GradientStep:
    """Makes gradient steps on train batches. The device itself skips a step that is not finite, and tells the host."""

    def __init__(
        self,
        compute: Compute,
        optimizer: torch.optim.Optimizer,
        module: torch.nn.Module,
        *,
        max_norm: float | None = None,
        recorded: bool = False,
    ) -> None:
        """Args:
        compute: the forward pass.
        optimizer: a fused one, with the parameters; those that the loss does not depend on get no gradient.
        module: the module whose running statistics the forward pass updates.
        max_norm: largest global norm of the gradient, which is scaled down to it; None: no clipping.
        recorded: record the whole step as one CUDA graph in the first call.
        """
        self._compute, self._optimizer = compute, optimizer
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._statistics = _NormalisationStatistics(module)
        self._max_norm = max_norm or math.inf
        self._inputs: list[str] = []
        self._shapes: dict[int, dict[str, torch.Size]] = {}
        """total number of values -> name and shape of each reported tensor"""
        self._run: Callable[..., tuple[Tensor, ...]] = self._on_device
        if recorded:
            self._run = GraphedFunction(self._on_device, around=self._steps_undone, copies=False, min_calls=1)
        _begin_at_zero(optimizer)

    def __call__(self, batch: Mapping[str, Tensor], learning_rate: float) -> dict[str, np.ndarray]:
        """Makes one step. If the loss or the gradient is not finite, nothing changes.

        Returns:
            The reported tensors, GRADIENT_NORM `[]` and FINITE `[]` on the host, as float64, which holds position ids
            exactly. The host waits for the device here and nowhere else.
        """
        self._inputs = sorted(batch)
        device = self._parameters[0].device
        # Fused kernels read the rate as float32 on a GPU; on a CPU they take any dtype.
        rate = torch.full(
            (), learning_rate, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device
        )
        (observed,) = self._run(rate, *(batch[name] for name in self._inputs))
        # Neither a fused optimizer nor a CUDA graph increments the weights' versions, by which `InferenceNetwork`
        # notices changes.
        torch.autograd.graph.increment_version(self._parameters[0])
        shapes = self._shapes[len(observed)]
        # Views of NumPy arrays: two dozen views of a tensor take longer than many kernels do.
        numbers, reported, end = observed.cpu().numpy(), {}, 0
        for name, shape in shapes.items():
            begin, end = end, end + math.prod(shape)
            reported[name] = numbers[begin:end].reshape(shape)
        if not reported[FINITE]:
            self._statistics.restore()
        return reported

    @contextlib.contextmanager
    def _steps_undone(self) -> Iterator[None]:
        """Undoes the steps made within the block, such as those of a recording."""
        changed = [*self._parameters, *_state_of(self._optimizer)]
        before = [tensor.detach().clone() for tensor in changed]
        with self._statistics.kept():
            yield
        with torch.no_grad():
            torch._foreach_copy_(changed, before)

    def _on_device(self, learning_rate: Tensor, *tensors: Tensor) -> tuple[Tensor]:
        """Makes the step, and returns everything to report in one flat tensor."""
        self._statistics.save()
        loss, observed = self._compute(dict(zip(self._inputs, tensors, strict=True)))
        self._optimizer.zero_grad()
        loss.backward()  # not autograd.grad: it lays gradients out like their parameters, as fused optimizers want them
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
        finite = _agreed_finite(loss, norm)
        with _told_by_device(self._optimizer, learning_rate, is_bad=(~finite).float()):
            self._optimizer.step()
        observed = observed | {names.GRADIENT_NORM: norm, FINITE: finite}
        flat = torch.cat([tensor.detach().double().flatten() for tensor in observed.values()])
        self._shapes[len(flat)] = {name: tensor.shape for name, tensor in observed.items()}
        return (flat,)


class _NormalisationStatistics:
    """Saves and restores a module's running statistics, to undo the effect of a forward pass that is not finite.

    The target network is left out: a forward pass never changes its statistics.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        named = module.named_buffers()
        own = [buffer for name, buffer in named if not name.startswith("target_network.")]
        # Grouped by dtype: a GPU copies a list of one dtype with one kernel, but a mixed list tensor by tensor.
        kinds = {buffer.dtype: [other for other in own if other.dtype == buffer.dtype] for buffer in own}
        self._buffers = list(kinds.values())
        self._saved = self._copies()

    def save(self) -> None:
        """Saves the current statistics."""
        for saved, buffers in zip(self._saved, self._buffers, strict=True):
            torch._foreach_copy_(saved, buffers)

    def restore(self) -> None:
        """Restores the saved statistics."""
        self._put_back(self._saved)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Restores the statistics from before the block at its end, whatever is saved within it."""
        before = self._copies()
        yield
        self._put_back(before)

    def _copies(self) -> list[list[Tensor]]:
        return [[buffer.clone() for buffer in buffers] for buffers in self._buffers]

    def _put_back(self, copies: list[list[Tensor]]) -> None:
        for buffers, saved in zip(self._buffers, copies, strict=True):
            torch._foreach_copy_(buffers, saved)


def _state_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The optimizer's momenta and counters."""
    return [tensor for state in optimizer.state.values() for tensor in state.values() if isinstance(tensor, Tensor)]


def own_state(optimizer: torch.optim.Optimizer) -> None:
    """Replaces an optimizer's state by a copy that it may write into: a loaded one may lie in memory that Ray shares
    among Learners. Momenta get their parameters' memory layout, which fused steps need and a pickle may lose."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                like = parameter if value.shape == parameter.shape else value
                values[name] = torch.empty_like(like, dtype=value.dtype, device=value.device).copy_(value)


def _begin_at_zero(optimizer: torch.optim.Optimizer) -> None:
    """Gives a fused optimizer without state its initial one, all zeros, which it would else make at its first step.

    A CUDA graph needs the state before it is recorded; and if SGD's first step were skipped, its momentum would be
    uninitialised memory.
    """
    if optimizer.state:
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    rate = torch.zeros((), device=parameters[0].device)
    with _told_by_device(optimizer, rate, is_bad=torch.ones_like(rate)):
        optimizer.step()
    optimizer.zero_grad()
    for tensor in _state_of(optimizer):
        tensor.zero_()


@contextlib.contextmanager
def _told_by_device(optimizer: torch.optim.Optimizer, learning_rate: Tensor, *, is_bad: Tensor) -> Iterator[None]:
    """Within, a fused optimizer reads its learning rate, and whether to skip the step, from tensors on the device, so
    that a CUDA graph of the step stays valid."""
    before = [dict(group) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        if "capturable" in group:  # torch requires it while a CUDA graph is recorded, and warns about it otherwise
            group["capturable"] = learning_rate.is_cuda and torch.cuda.is_current_stream_capturing()
    optimizer.found_inf = is_bad  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]
        for group, options in zip(optimizer.param_groups, before, strict=True):
            group.update(options)


def _agreed_finite(*values: Tensor) -> Tensor:
    """`[]` bool: whether all values are finite, on every learner of the group."""
    finite = torch.stack([torch.isfinite(value).all() for value in values]).all()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        votes = finite.to(torch.int32)
        torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MIN)
        finite = votes.bool()
    return finite
