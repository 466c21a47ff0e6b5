"""Modules of a network for images whose inference is one kernel each, with the parameters of the modules they replace.

They replace modules of a `folding.FoldedCopy` on a GPU. A search computes little for each of many states, so that its
time goes into launching kernels and memory traffic.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rllib_efficientzero.models.block_kernels import FEW_IMAGES, residual_blocks, residual_blocks_fit
from rllib_efficientzero.models.catalog import build_network
from rllib_efficientzero.models.config import ModelConfig
from rllib_efficientzero.models.dynamics import ImageDynamics, ValuePrefixHead
from rllib_efficientzero.models.folding import FoldedCopy, ScaleAndShift
from rllib_efficientzero.models.head_kernels import ROOTS, image_head, prefix_head
from rllib_efficientzero.models.layers import Reduce, ResidualBlock, take_over
from rllib_efficientzero.models.network import EfficientZeroNetwork

LARGEST_WIDTH = 64
"""The most channels of an image head, before and after the reduction."""
LARGEST_HIDDEN = 128
"""The most bytes of a row of the hidden layer."""
LARGEST_POSITION = 8192
"""The most bytes that a program reads for one position."""
DTYPES = (torch.bfloat16, torch.float32)


def fuse(network: EfficientZeroNetwork) -> None:
    """Replaces the modules of a network that have a fused version. Normalisations must be folded already."""
    if len(network.latent_shape) != 3 or not residual_blocks_fit(*network.latent_shape):
        return
    dynamics, prediction = network.dynamics, network.prediction
    if type(dynamics) is ImageDynamics and dynamics.num_planes == 1 and _are_plain(dynamics.blocks):
        network.dynamics = FusedDynamics(dynamics)
    if _are_plain(prediction.trunk):
        prediction.trunk = FusedBlocks(prediction.trunk.children())
    if image_head_fits(prediction.policy):
        prediction.policy = FusedImageHead(*prediction.policy.children())
    if image_head_fits(prediction.value):
        prediction.value = FusedImageHead(*prediction.value.children())
    if type(network.value_prefix) is ValuePrefixHead and prefix_head_fits(network.value_prefix):
        network.value_prefix = FusedPrefixHead(network.value_prefix)


@torch.inference_mode()
def try_kernels(device: torch.device, dtype: torch.dtype) -> None:
    """Runs all kernels once, at the sizes of the paper's network; raises an error if the device cannot."""
    with torch.random.fork_rng(devices=[]):  # a run must not depend on whether this was called
        network = build_network((1, 96, 96, 1), 2, ModelConfig()).to(device)
    module = FoldedCopy(network, dtype, fuse).module
    for batch in (1, FEW_IMAGES + 1):
        latent = torch.zeros(batch, *network.latent_shape, dtype=dtype, device=device)
        reward_hidden, action = network.initial_reward_hidden(latent), latent.new_zeros(batch, dtype=torch.int64)
        module.recurrent_inference(latent.contiguous(memory_format=torch.channels_last), reward_hidden, action)


# --- The parts -------------------------------------------------------------------------------------------------------


class FusedBlocks(nn.Sequential):
    """Residual blocks that keep their input's shape, normalisations folded: `[B, C, h, w] -> [B, C, h, w]`."""

    held_weights: Tensor
    held_biases: Tensor

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__(*blocks)
        _register(self, *_of_blocks(self))

    @torch.no_grad()
    def precompute(self, size: Sequence[int]) -> None:
        """See `ImageDynamics.precompute`."""
        _update(self, *_of_blocks(self))

    def forward(self, x: Tensor) -> Tensor:
        none = x.new_empty(0)
        return residual_blocks(x, self.held_weights, self.held_biases, none, none)


class FusedDynamics(ImageDynamics):
    """`ImageDynamics` with folded normalisations, for actions that are encoded as one plane."""

    held_weights: Tensor
    held_biases: Tensor

    def __init__(self, dynamics: ImageDynamics) -> None:
        take_over(self, dynamics)
        self.num_planes, self.encode_action = dynamics.num_planes, dynamics.encode_action
        for name in ("held_weight", "held_responses"):
            self.register_buffer(name, None, persistent=False)
        _register(self, *self._of_all())

    @torch.no_grad()
    def precompute(self, size: Sequence[int]) -> None:
        """See `ImageDynamics.precompute`."""
        super().precompute(size)
        _update(self, *self._of_all())

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        assert self.held_responses is not None, "precompute() comes first"
        # In float32, as `ImageDynamics` has it.
        number, response = self.encode_action(action).float().squeeze(1), self.held_responses[0]
        return residual_blocks(latent, self.held_weights, self.held_biases, number, response)

    def _of_all(self) -> tuple[list[Tensor], list[Tensor]]:
        assert self.conv.bias is not None, "of its normalisation, which is folded"
        weights, biases = _of_blocks(self.blocks)
        return [_taps(self._weight_of_latent()), *weights], [self.conv.bias, *biases]


class FusedImageHead(nn.Sequential):
    """A fused image head: `[B, C, h, w] -> [B, out]`. `FusedImageHead(*head)` shares the modules of a `head` for which
    `image_head_fits` is true."""

    held_weight: Tensor | None
    """See `precompute`."""

    def __init__(self, reduce: nn.Module, layers: nn.Module) -> None:
        super().__init__(reduce, layers)
        self.register_buffer("held_weight", None, persistent=False)

    @torch.no_grad()
    def precompute(self, size: Sequence[int] = ()) -> None:
        """See `ImageDynamics.precompute`. `size` is not needed: the weights tell the size of latents."""
        weight = self._weight_of_positions()
        if self.held_weight is None:
            self.held_weight = weight
        else:
            self.held_weight.copy_(weight)

    def forward(self, x: Tensor) -> Tensor:
        conv, hidden, last = _layers(self)
        weight = self._weight_of_positions() if self.held_weight is None else self.held_weight
        return image_head(x, conv.weight, conv.bias, weight, hidden.bias, last.weight, last.bias)

    def _weight_of_positions(self) -> Tensor:
        """The hidden layer's weights `[H, R * h * w]` as `[h * w, R, H]`: those of one position lie side by side."""
        conv, hidden, _ = _layers(self)
        return hidden.weight.unflatten(1, (conv.out_channels, -1)).permute(2, 1, 0).contiguous()


class FusedPrefixHead(ValuePrefixHead):
    """A fused value prefix head; it shares the modules of an original for which `prefix_head_fits` is true."""

    def __init__(self, original: ValuePrefixHead) -> None:
        take_over(self, original)

    def read(self, reward_hidden: Tensor) -> Tensor:
        scale, shift, hidden, last = self.norm.weight, self.norm.bias, self.head[0], self.head[-1]
        return prefix_head(reward_hidden, scale, shift, hidden.weight, hidden.bias, last.weight, last.bias)


# --- What fits -------------------------------------------------------------------------------------------------------


def _are_plain(blocks: nn.Module) -> bool:
    """Whether a module is a sequence of one or more `ResidualBlock`s that keep their input's shape."""
    if type(blocks) is not nn.Sequential or len(blocks) == 0:
        return False
    return all(type(block) is ResidualBlock and isinstance(block.shortcut, nn.Identity) for block in blocks)


def image_head_fits(head: nn.Module) -> bool:
    """Whether `FusedImageHead` can replace a head: a `Reduce` and an MLP of one hidden layer, normalisations folded.

    All widths except the number of logits must be powers of two of at least 16, and small enough for the registers and
    the memory of a recent GPU's multiprocessor. The dtype is bfloat16, or float32 with about half the widths.
    """
    if not isinstance(head, nn.Sequential) or len(head) != 2 or not isinstance(head[0], Reduce):
        return False
    if not isinstance(head[0].norm, nn.Identity) or not _fits_layers(head[1], head[0].conv.weight.dtype):
        return False
    conv, hidden, _ = _layers(head)
    if not (_is_tile(conv.in_channels, LARGEST_WIDTH) and _is_tile(conv.out_channels, LARGEST_WIDTH)):
        return False
    of_position = ROOTS * conv.in_channels + conv.out_channels * hidden.out_features
    return of_position * conv.weight.itemsize <= LARGEST_POSITION


def prefix_head_fits(head: ValuePrefixHead) -> bool:
    """Whether `FusedPrefixHead` can replace a head: as `image_head_fits`, but the LSTM may have any size."""
    if not isinstance(head.norm, ScaleAndShift) or head.norm.weight.dtype != torch.float32:
        return False
    return _fits_layers(head.head, head.lstm.weight_hh.dtype)


def _fits_layers(layers: nn.Module, dtype: torch.dtype) -> bool:
    """Whether `layers` are Linear-ReLU-Linear, with biases and a hidden layer that is small enough."""
    if not isinstance(layers, nn.Sequential) or dtype not in DTYPES:
        return False
    found: list[Any] = [layer for layer in layers if not isinstance(layer, nn.Identity)]
    if [type(layer) for layer in found] != [nn.Linear, nn.ReLU, nn.Linear]:
        return False
    linear = found[::2]
    is_known = all(layer.weight.dtype == dtype and layer.bias is not None for layer in linear)
    return is_known and _is_tile(linear[0].out_features, LARGEST_HIDDEN // dtype.itemsize)


def _is_tile(width: int, largest: int) -> bool:
    return 16 <= width <= largest and width.bit_count() == 1


def _layers(head: nn.Sequential) -> tuple[nn.Conv2d, nn.Linear, nn.Linear]:
    """The convolution and the two linear layers of a head that fits."""
    reduce: Any = head[0]
    layers: Any = head[1]
    return reduce.conv, layers[0], layers[-1]


def _register(module: nn.Module, weights: list[Tensor], biases: list[Tensor]) -> None:
    """Registers the stacked weights and biases of a module's convolutions, as `residual_blocks` takes them."""
    module.register_buffer("held_weights", torch.stack(weights), persistent=False)
    module.register_buffer("held_biases", torch.stack(biases), persistent=False)


def _update(module: FusedBlocks | FusedDynamics, weights: list[Tensor], biases: list[Tensor]) -> None:
    """Updates the registered weights and biases in place."""
    torch.stack(weights, out=module.held_weights)
    torch.stack(biases, out=module.held_biases)


def _of_blocks(blocks: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Weights `[3, 3, C, C]` (see `residual_blocks`) and biases `[C]` of all convolutions."""
    convolutions: list[Any] = [conv for block in blocks.children() for conv in (block.conv1, block.conv2)]
    return [_taps(conv.weight) for conv in convolutions], [conv.bias for conv in convolutions]


def _taps(weight: Tensor) -> Tensor:
    return weight.permute(2, 3, 1, 0)
