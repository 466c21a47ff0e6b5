"""Modules for fast inference on a CPU, with the parameters of the modules that they replace.

They replace modules of a `folding.FoldedCopy` on a CPU, as those of `fused_modules` do on a GPU. A search evaluates few
states at a time, so that its time goes into reading weights and into calls of the matrix library.
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
    """Replaces the modules of a network that have a faster version below."""
    prediction = network.prediction
    if type(network.value_prefix) is ValuePrefixHead:
        network.value_prefix = WeightsFirstPrefixHead(network.value_prefix)
        network.value_prefix.head = _in_float32(network.value_prefix.head)
    prediction.policy, prediction.value = _in_float32(prediction.policy), _in_float32(prediction.value)


class WeightsFirstPrefixHead(ValuePrefixHead):
    """A value prefix head whose LSTM is one matrix product, of all its weights by all inputs.

    The larger matrix should be the left factor: 8 rows of states times 12.6 MB of weights take twice as long as these
    weights times 8 columns.
    """

    held_weight: Tensor
    held_bias: Tensor

    def __init__(self, original: ValuePrefixHead) -> None:
        take_over(self, original)
        self.register_buffer("held_weight", self._weight(), persistent=False)
        self.register_buffer("held_bias", self._bias(), persistent=False)

    @torch.no_grad()
    def precompute(self, size: Sequence[int]) -> None:
        """See `ImageDynamics.precompute`."""
        self.held_weight.copy_(self._weight())
        self.held_bias.copy_(self._bias())

    def advance(self, next_latent: Tensor, reward_hidden: Tensor) -> Tensor:
        h, c = reward_hidden.chunk(2, dim=1)
        inputs = torch.cat((self.features(next_latent), h), dim=1)
        # The operations after the product are faster in float32 than in bfloat16, and more accurate.
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
    """A head that computes in float32, whatever the precision of its input.

    A product in bfloat16 takes oneDNN at least 50 microseconds, even one as small as a head's.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def _in_float32(head: Any) -> Any:
    """Turns a head into a `Float32Head` if it is a plain `nn.Sequential` in bfloat16."""
    is_low = all(parameter.dtype == torch.bfloat16 for parameter in head.parameters())
    return Float32Head(*head.children()).float() if type(head) is nn.Sequential and is_low else head
