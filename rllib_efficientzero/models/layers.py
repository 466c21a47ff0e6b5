"""Building blocks shared by the networks (algorithmic description: EfficientZero, appendix A.1).

What follows a normalisation works in place: no gradient needs a normalisation's output, and memory is what rectifying
and adding wait for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALIGNMENT = 8
"""Channels that tensor cores of a GPU take at a time."""
PAIRS = (2, 1), (1, 0)
"""Stride and padding with which pairs of columns are convolved."""


class AlignedConv2d(nn.Conv2d):
    """A convolution that fills its input's channels up with zeros on a GPU, as tensor cores take them, unless they come
    filled up."""

    def forward(self, x: Tensor) -> Tensor:
        missing = -self.in_channels % ALIGNMENT
        if missing == 0 or x.device.type != "cuda":
            return super().forward(x)
        filling = (0, 0, 0, 0, 0, missing)
        x = F.pad(x, filling) if x.shape[1] == self.in_channels else x
        return F.conv2d(x, F.pad(self.weight, filling), self.bias, self.stride, self.padding)


class HalvingConv2d(AlignedConv2d):
    """A 3x3 convolution that halves the size, without bias; of planes, or of them in a `PlaneLayout` of pairs.

    Tensor cores like many channels: of twelve planes (1,280 times 96x96), pairs take an H200 201 microseconds for 435.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, stride=2, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # What is traced is for a CPU, which is given planes; to the tracer, a comparison is something that may change.
        if torch.jit.is_tracing() or x.shape[1] == self.in_channels:
            return super().forward(x)
        return F.conv2d(x, self.weight_of_pairs(x.shape[1] // 2), self.bias, *PAIRS)

    def weight_of_pairs(self, filled: int) -> Tensor:
        """`[O, 2F, 3, 2]` for planes filled up to F."""
        # Column 2j - 1 + s of the image is column s % 2 of pair j + s // 2; there is none for s = 3.
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
    """Makes `module` one with the modules of another, instead of its class's `__init__`, which would make them anew, of
    random numbers."""
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
