"""Image augmentation of the learner's observations: a random shift, then a random intensity (appendix A.3)."""

from __future__ import annotations

import torch
from torch import Tensor

PAD = 4
INTENSITY_SCALE = 0.05


def draw_augmentation(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws on the host what `augment` is to do to each sample of a batch.

    Args:
        batch: B.
        generator: a CPU generator; the only source of randomness.

    Returns:
        Shifts by rows and columns `[B, 2]` int64, up to 4 pixels each way, and brightness factors `[B]` float32.
    """
    shift = torch.randint(-PAD, PAD + 1, (batch, 2), generator=generator)
    noise = torch.randn(batch, generator=generator).clamp(-2.0, 2.0)
    return shift, 1.0 + INTENSITY_SCALE * noise


def augment(planes: Tensor, shift: Tensor, intensity: Tensor) -> Tensor:
    """Shifts every sample and scales its brightness by a few per cent.

    All planes of a sample (a stack, or several consecutive frames) are shifted alike. A shift equals padding by
    replication of the border and a random crop.

    Args:
        planes: `[B, P, H, W]` floats.
        shift: `[B, 2]` int64 rows and columns; see `draw_augmentation`.
        intensity: `[B]` factors.

    Returns:
        `[B, P, H, W]`, not clamped to 0..1; laid out channels last.
    """
    batch, planes_per_sample, height, width = planes.shape
    device = planes.device
    rows = (torch.arange(height, device=device) + shift[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=device) + shift[:, 1:]).clamp(0, width - 1)
    samples = torch.arange(batch, device=device)
    pixels = (samples[:, None, None] * height + rows[:, :, None]) * width + columns[:, None, :]
    # Gathers whole pixels, whose planes are contiguous in memory: several times cheaper than gathering in each plane.
    flat = planes.permute(0, 2, 3, 1).reshape(-1, planes_per_sample)
    # In place, so that planes of low precision keep their dtype: only the product is rounded, not the float32 factor.
    scaled = flat.index_select(0, pixels.flatten()).view(batch, -1).mul_(intensity[:, None])
    return scaled.view(batch, height, width, planes_per_sample).permute(0, 3, 1, 2)
