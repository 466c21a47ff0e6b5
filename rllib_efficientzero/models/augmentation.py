"""Image augmentation of the learner's observations: a random shift, then a random intensity (appendix A.3)."""

from __future__ import annotations

import torch
from torch import Tensor

PAD = 4
INTENSITY_SCALE = 0.05


def augment(planes: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every sample by up to 4 pixels each way and scale its brightness by a few per cent.

    All planes of a sample (a stack, or a row of consecutive frames) move together. A shift equals padding by
    replicating the border and cropping at random.

    Args:
        planes: `[B, P, H, W]` floats.
        generator: a CPU generator; the only source of randomness.

    Returns:
        `[B, P, H, W]`, not clamped to 0..1; laid out channels last.
    """
    batch, planes_per_sample, height, width = planes.shape
    shift = torch.randint(-PAD, PAD + 1, (batch, 2), generator=generator)
    rows = (torch.arange(height) + shift[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width) + shift[:, 1:]).clamp(0, width - 1)
    samples = torch.arange(batch)
    pixels = (samples[:, None, None] * height + rows[:, :, None]) * width + columns[:, None, :]
    # Whole pixels are gathered, each contiguous in memory: several times cheaper than picking from every plane.
    flat = planes.permute(0, 2, 3, 1).reshape(-1, planes_per_sample)
    shifted = flat.index_select(0, pixels.flatten().to(planes.device))
    noise = torch.randn(batch, generator=generator).clamp(-2.0, 2.0).to(planes.device)
    scaled = shifted.view(batch, -1) * (1.0 + INTENSITY_SCALE * noise)[:, None]
    return scaled.view(batch, height, width, planes_per_sample).permute(0, 3, 1, 2)
