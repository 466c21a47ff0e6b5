"""Building blocks shared by the networks (algorithmic description: EfficientZero, appendix A.1).

Operations after a normalisation work in place: no gradient needs the normalisation's output, and the speed of ReLUs and
additions is limited by memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALIGNMENT = 8
"""Tensor cores of a GPU process channels in multiples of this."""
PAIRS = (2, 1), (1, 0)
"""Stride and padding of a convolution over pairs of columns."""


class AlignedConv2d(nn.Conv2d):
    """A convolution that on a GPU pads its input with zero channels to a multiple of `ALIGNMENT`, for tensor cores.

    Inputs that are padded already are taken as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        missing = -self.in_channels % ALIGNMENT
        if missing == 0 or x.device.type != "cuda":
            return super().forward(x)
        filling = (0, 0, 0, 0, 0, missing)
        x = F.pad(x, filling) if x.shape[1] == self.in_channels else x
        return F.conv2d(x, F.pad(self.weight, filling), self.bias, self.stride, self.padding)


class HalvingConv2d(AlignedConv2d):
    """A 3x3 convolution that halves the size, without bias. It takes planes, or pairs of columns (see `PlaneLayout`).

    Tensor cores are faster with more channels: for 1,280 inputs of twelve planes 96x96, an H200 takes 201 microseconds
    with pairs instead of 435.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, stride=2, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # Traced functions are for a CPU, which gets planes; tracing the comparison of shapes would give a warning.
        if torch.jit.is_tracing() or x.shape[1] == self.in_channels:
            return super().forward(x)
        return F.conv2d(x, self.weight_of_pairs(x.shape[1] // 2), self.bias, *PAIRS)

    def weight_of_pairs(self, filled: int) -> Tensor:
        """The weights `[O, 2F, 3, 2]` of the same convolution over pairs of columns, for planes padded to F."""
        # Column 2j - 1 + s of the image is column s % 2 of pair j + s // 2; there is no tap s = 3.
        weight = F.pad(self.weight, (0, 1, 0, 0, 0, filled - self.in_channels)).unflatten(3, (2, 2))
        return weight.permute(0, 4, 1, 2, 3).flatten(1, 2)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size (or halves it), without bias: batch normalisation always follows."""
    return AlignedConv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


class ResidualBlock(nn.Module):
    """conv-BN-ReLU-conv-BN + shortcut, ReLU; `[B, in, H, W] -> [B, out, H / stride, W / stride]`."""

    def __init__(self, in_channels: int, out_channels: int | None = None, stride: int = 1) -> None:
        super().__init__()
        out_channels = out_channels or in_channels
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.norm2 = nn.BatchNorm2d(out_channels)
        # The paper's down-sampling block projects its shortcut by a plain strided convolution without normalisation.
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut: nn.Module = nn.Identity() if same_shape else conv3x3(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        return F.relu(y.add_(self.shortcut(x)), inplace=True)


def mlp(in_features: int, hidden: Sequence[int], out_features: int, *, zero_last: bool = False) -> nn.Sequential:
    """Linear-BN-ReLU per hidden layer, then Linear.

    `zero_last` sets the last layer to zero, so that a fresh head predicts a uniform policy, or value zero.
    """
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(in_features, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        in_features = width
    last = nn.Linear(in_features, out_features)
    if zero_last:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


def take_over(module: nn.Module, original: nn.Module) -> None:
    """Initialises `module` with the child modules of `original`, instead of calling its class's `__init__`, which would
    make new ones with random weights."""
    nn.Module.__init__(module)
    for name, child in original.named_children():
        module.add_module(name, child)


class Reduce(nn.Module):
    """1x1 convolution to a few channels, BN, ReLU, flatten: `[B, C, H, W] -> [B, reduced * H * W]`."""

    def __init__(self, channels: int, reduced_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, reduced_channels, kernel_size=1)
        self.norm = nn.BatchNorm2d(reduced_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True).flatten(1)
