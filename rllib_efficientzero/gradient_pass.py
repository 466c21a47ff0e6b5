"""Forward and backward pass of an update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from rllib_efficientzero import metrics as names

Compute = Callable[[Mapping[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]
"""Train batch -> loss `[]`, and what else is to be known of the update."""
Function = Callable[..., tuple[Tensor, ...]]

FINITE = "finite"
"""Whether the loss and all gradients are."""


class GradientPass:
    """Fills the gradients of parameters from a train batch, clipped, and tells what was observed on the way."""

    def __init__(
        self,
        compute: Compute,
        parameters: Iterable[Tensor],
        *,
        max_norm: float | None = None,
        prepare: Callable[[], None] = lambda: None,
        compiled: Callable[[Function], Function] = lambda function: function,
    ) -> None:
        """Args:
        compute: the forward pass.
        parameters: those whose `grad` is set; a parameter that the loss does not depend on gets None.
        max_norm: global norm that the gradient is scaled down to; None: as it is.
        prepare: called on the device before each pass.
        compiled: makes of a function of tensors a faster one, such as `GraphedFunction`.
        """
        self._compute, self._parameters, self._prepare = compute, list(parameters), prepare
        self._max_norm = max_norm or math.inf
        self._run = compiled(self._forward_and_backward)
        self._inputs: list[str] = []
        self._shapes: dict[str, torch.Size] = {}

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One pass; a next one may write over the gradients.

        Returns:
            What was observed, and GRADIENT_NORM `[]` and FINITE `[]`, on the host, which waits for the device here and
            nowhere else; as float64, which is exact for position ids too.
        """
        self._inputs = list(batch)
        *gradients, observed = self._run(*batch.values())
        # A graph writes where the gradients were when it was recorded, wherever they were put since.
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        parts = observed.cpu().split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def _forward_and_backward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The gradients, and all that was observed in one tensor."""
        self._prepare()
        loss, observed = self._compute(dict(zip(self._inputs, tensors, strict=True)))
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()  # not autograd.grad: it lays gradients out like their parameters, as fused optimizers want them
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
        observed = observed | {names.GRADIENT_NORM: norm, FINITE: _agreed_finite(loss, norm)}
        self._shapes = {name: tensor.shape for name, tensor in observed.items()}
        gradients: list[Tensor] = [parameter.grad for parameter in self._parameters]  # type: ignore[misc]
        return (*gradients, torch.cat([tensor.detach().double().flatten() for tensor in observed.values()]))


def _agreed_finite(*values: Tensor) -> Tensor:
    """`[]` bool: whether all values are finite, on every learner of the group."""
    finite = torch.stack([torch.isfinite(value).all() for value in values]).all()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        votes = finite.to(torch.int32)
        torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MIN)
        finite = votes.bool()
    return finite
