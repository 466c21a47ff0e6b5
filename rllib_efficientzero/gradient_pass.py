"""Forward and backward pass of an update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

Compute = Callable[[Mapping[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]
"""Train batch -> loss `[]`, and what else is to be known of the update."""
Function = Callable[..., tuple[Tensor, ...]]


class GradientPass:
    """Fills the gradients of parameters from a train batch, and returns what was observed on the way."""

    def __init__(
        self,
        compute: Compute,
        parameters: Iterable[Tensor],
        compiled: Callable[[Function], Function] = lambda function: function,
    ) -> None:
        """Args:
        compute: the forward pass.
        parameters: those whose `grad` is set; a parameter that the loss does not depend on gets None.
        compiled: makes of a function of tensors a faster one, such as `GraphedFunction`.
        """
        self._compute, self._parameters = compute, list(parameters)
        self._run = compiled(self._forward_and_backward)
        self._inputs: list[str] = []
        self._outputs: list[str] = []

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One pass; a next one may write over its results and over the gradients."""
        self._inputs = list(batch)
        results = self._run(*batch.values())
        # A graph writes where the gradients were when it was recorded, wherever they were put since.
        count = len(self._parameters)
        for parameter, gradient in zip(self._parameters, results[:count], strict=True):
            parameter.grad = gradient
        return dict(zip(self._outputs, results[count:], strict=True))

    def _forward_and_backward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        loss, observed = self._compute(dict(zip(self._inputs, tensors, strict=True)))
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()  # not autograd.grad: it lays gradients out like their parameters, as fused optimizers want them
        self._outputs = list(observed)
        gradients: list[Tensor] = [parameter.grad for parameter in self._parameters]  # type: ignore[misc]
        return (*gradients, *observed.values())
