"""Parts of a network as a CPU infers fastest with them: the same parameters, by other means.

They take the place of parts of a `folding.FoldedCopy` on a CPU, as those of `fused_modules` do on a GPU. A search
evaluates few states at a time, so that reading weights and calling the library for matrices are what counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rllib_efficientzero.models.dynamics import ValuePrefixHead
from rllib_efficientzero.models.layers import take_over
from rllib_efficientzero.models.network import EfficientZeroNetwork


def arrange(network: EfficientZeroNetwork) -> None:
    """Put the parts below in the place of those that they can stand for."""
    prediction = network.prediction
    if type(network.value_prefix) is ValuePrefixHead:
        network.value_prefix = WeightsFirstPrefixHead(network.value_prefix)
        network.value_prefix.head = _in_float32(network.value_prefix.head)
    prediction.policy, prediction.value = _in_float32(prediction.policy), _in_float32(prediction.value)


class WeightsFirstPrefixHead(ValuePrefixHead):
    """A head whose LSTM is one product, of all its weights by all inputs.

    The left factor of a product should have the many rows: those of 8 states by 12.6 MB of weights take twice as long
    as these weights by 8 columns.
    """

    held_weight: Tensor
    held_bias: Tensor

    def __init__(self, original: ValuePrefixHead) -> None:
        take_over(self, original)
        self.register_buffer("held_weight", self._weight(), persistent=False)
        self.register_buffer("held_bias", self._bias(), persistent=False)

    @torch.no_grad()
    def hold(self, size: Sequence[int]) -> None:
        """See `ImageDynamics.hold`."""
        self.held_weight.copy_(self._weight())
        self.held_bias.copy_(self._bias())

    def advance(self, next_latent: Tensor, reward_hidden: Tensor) -> Tensor:
        h, c = reward_hidden.chunk(2, dim=1)
        inputs = torch.cat((self.features(next_latent), h), dim=1)
        # What follows the product is cheaper in float32 than in bfloat16, and better.
        gates = torch.mm(self.held_weight, inputs.t()).to(self.held_bias.dtype).add_(self.held_bias)
        enters, stays, new, leaves = gates.chunk(4)
        c = stays.sigmoid_().mul_(c.t()).add_(enters.sigmoid_().mul_(new.tanh_()))
        h = leaves.sigmoid_().mul_(c.tanh())
        return torch.cat((h, c)).t().to(reward_hidden.dtype)

    def _weight(self) -> Tensor:
        """`[4H, I + H]`"""
        return torch.cat((self.lstm.weight_ih, self.lstm.weight_hh), dim=1)

    def _bias(self) -> Tensor:
        """`[4H, 1]`, at least float32"""
        dtype = torch.promote_types(self.lstm.bias_ih.dtype, torch.float32)
        return (self.lstm.bias_ih.to(dtype) + self.lstm.bias_hh.to(dtype)).unsqueeze(1)


class Float32Head(nn.Sequential):
    """A head that computes in float32 what comes in another precision.

    Products as small as a head's take oneDNN 50 microseconds in bfloat16, however small they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def _in_float32(head: Any) -> Any:
    """A `Float32Head` if it is a head of ours in bfloat16."""
    is_low = all(parameter.dtype == torch.bfloat16 for parameter in head.parameters())
    return Float32Head(*head.children()).float() if type(head) is nn.Sequential and is_low else head
