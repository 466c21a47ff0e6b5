"""The representation network h: observation -> latent."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rllib_efficientzero.models.layers import ALIGNMENT, HalvingConv2d, ResidualBlock, conv3x3, mlp
from rllib_efficientzero.models.plane_layout import PlaneLayout


class ImageRepresentation(nn.Module):
    """`[B, in_channels, H, W] -> [B, channels, H / 2^n, W / 2^n]` with n = `num_halvings`.

    With four halvings this is the paper's network: a strided convolution, a strided residual block, then two average
    pools, each followed by residual blocks. With fewer, for smaller images, the last pools are left out, then strides.
    """

    def __init__(self, in_channels: int, channels: int, num_blocks: int, num_halvings: int) -> None:
        super().__init__()
        half = channels // 2
        self.plane_layout = PlaneLayout(ALIGNMENT, paired=num_halvings >= 1)
        """See `EfficientZeroNetwork.plane_layout`."""
        second_stride = 2 if num_halvings >= 2 else 1
        stages: list[nn.Module] = [
            HalvingConv2d(in_channels, half) if num_halvings >= 1 else conv3x3(in_channels, half),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            ResidualBlock(half),
            ResidualBlock(half, channels, second_stride),
            ResidualBlock(channels),
        ]
        for pool in range(num_halvings - 2):
            is_last = pool == num_halvings - 3
            blocks = num_blocks if is_last else 1
            stages += [nn.AvgPool2d(3, stride=2, padding=1), *(ResidualBlock(channels) for _ in range(blocks))]
        self.stages = nn.Sequential(*stages)

    def forward(self, planes: Tensor) -> Tensor:
        return self.stages(planes)


class VectorRepresentation(nn.Module):
    """`[B, in_features] -> [B, latent_size]`: an MLP whose output is normalised and rectified, like image latents."""

    def __init__(self, in_features: int, hidden: Sequence[int], latent_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            mlp(in_features, hidden, latent_size), nn.BatchNorm1d(latent_size), nn.ReLU(inplace=True)
        )

    def forward(self, vector: Tensor) -> Tensor:
        return self.layers(vector)
