"""Parts of a network for images whose inference is one kernel each: the same parameters, by other means.

They take the place of parts of a `folding.FoldedCopy` on a GPU: when searching, which computes little for each of many
states, launching and memory are what counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rllib_efficientzero.models import head_kernels
from rllib_efficientzero.models.block_kernels import fits, residual_blocks
from rllib_efficientzero.models.dynamics import ActionEncoding, ImageDynamics, ValuePrefixHead
from rllib_efficientzero.models.head_kernels import FusedImageHead, FusedPrefixHead
from rllib_efficientzero.models.layers import ResidualBlock
from rllib_efficientzero.models.network import EfficientZeroNetwork


class FusedBlocks(nn.Sequential):
    """Residual blocks that keep their input's shape, normalisations folded: `[B, C, h, w] -> [B, C, h, w]`."""

    held_weights: Tensor
    held_biases: Tensor

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__(*blocks)
        weights, biases = _of_blocks(self)
        self.register_buffer("held_weights", torch.stack(weights), persistent=False)
        self.register_buffer("held_biases", torch.stack(biases), persistent=False)

    @torch.no_grad()
    def hold(self, size: Sequence[int]) -> None:
        """See `ImageDynamics.hold`."""
        weights, biases = _of_blocks(self)
        torch.stack(weights, out=self.held_weights)
        torch.stack(biases, out=self.held_biases)

    def forward(self, x: Tensor) -> Tensor:
        none = x.new_empty(0)
        return residual_blocks(x, self.held_weights, self.held_biases, none, none)


class FusedDynamics(ImageDynamics):
    """`ImageDynamics`, normalisations folded, for actions that are one plane."""

    held_weights: Tensor
    held_biases: Tensor

    def __init__(self, dynamics: ImageDynamics) -> None:
        super().__init__(dynamics.conv.out_channels, ActionEncoding(1, dynamics.encode_action), num_blocks=0)
        self.conv, self.norm, self.blocks = dynamics.conv, dynamics.norm, dynamics.blocks
        weights, biases = self._of_all()
        self.register_buffer("held_weights", torch.stack(weights), persistent=False)
        self.register_buffer("held_biases", torch.stack(biases), persistent=False)

    @torch.no_grad()
    def hold(self, size: Sequence[int]) -> None:
        """See `ImageDynamics.hold`."""
        super().hold(size)
        weights, biases = self._of_all()
        torch.stack(weights, out=self.held_weights)
        torch.stack(biases, out=self.held_biases)

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        assert self.held_responses is not None, "hold() comes first"
        number, response = self.encode_action(action).to(latent.dtype).squeeze(1), self.held_responses[0]
        return residual_blocks(latent, self.held_weights, self.held_biases, number, response)

    def _of_all(self) -> tuple[list[Tensor], list[Tensor]]:
        assert self.conv.bias is not None, "of its normalisation, which is folded"
        weights, biases = _of_blocks(self.blocks)
        return [_taps(self._weight_of_latent()), *weights], [self.conv.bias, *biases]


def fuse(network: EfficientZeroNetwork) -> None:
    """Put fused parts in the place of those that they can stand for. Normalisations must be folded."""
    if len(network.latent_shape) != 3 or not fits(*network.latent_shape):
        return
    dynamics, prediction = network.dynamics, network.prediction
    if type(dynamics) is ImageDynamics and dynamics.num_planes == 1 and _are_plain(dynamics.blocks):
        network.dynamics = FusedDynamics(dynamics)
    if _are_plain(prediction.trunk):
        prediction.trunk = FusedBlocks(prediction.trunk.children())
    if head_kernels.fits(prediction.policy):
        prediction.policy = FusedImageHead(*prediction.policy.children())
    if head_kernels.fits(prediction.value):
        prediction.value = FusedImageHead(*prediction.value.children())
    if type(network.value_prefix) is ValuePrefixHead and head_kernels.fits_prefix(network.value_prefix):
        network.value_prefix = FusedPrefixHead(network.value_prefix)


def _are_plain(blocks: nn.Module) -> bool:
    """Whether they are residual blocks of ours, at least one."""
    known = type(blocks) is nn.Sequential and all(type(block) is ResidualBlock for block in blocks)
    return known and len(list(blocks.children())) > 0


def _of_blocks(blocks: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Weights `[3, 3, C, C]` (see `residual_blocks`) and biases `[C]` of all convolutions."""
    convolutions: list[Any] = [conv for block in blocks.children() for conv in (block.conv1, block.conv2)]
    return [_taps(conv.weight) for conv in convolutions], [conv.bias for conv in convolutions]


def _taps(weight: Tensor) -> Tensor:
    return weight.permute(2, 3, 1, 0)
