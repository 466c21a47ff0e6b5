"""From raw frames to what the networks see. Frames are stored single and raw; stacks are formed here, on the device."""

from __future__ import annotations

import torch
from torch import Tensor


def observation_planes(frames: Tensor) -> Tensor:
    """Stacked frames, oldest first -> network input.

    Args:
        frames: `[B, S, H, W, C]` images (uint8 in 0..255, or floats) or `[B, S, D]` vectors.

    Returns:
        `[B, S * C, H, W]` float32, a block of C planes per frame, uint8 scaled to 0..1; or `[B, S * D]` float32.
    """
    if frames.ndim == 3:
        return frames.flatten(1).float()
    planes = frames.permute(0, 1, 4, 2, 3).flatten(1, 2)
    return planes.float() / 255.0 if frames.dtype == torch.uint8 else planes.float()


def stack_windows(frames: Tensor, rows: Tensor, times: Tensor, frame_stack: int) -> Tensor:
    """Pick stacks out of windows of consecutive frames.

    Args:
        frames: `[B, F, ...]` consecutive frames; frame j belongs to time j - (frame_stack - 1) of the window.
        rows: `[M]` int64 window of each stack.
        times: `[M]` int64 time of each stack's newest frame, 0 being the sampled position.
        frame_stack: frames per stack, S.

    Returns:
        `[M, S, ...]`.
    """
    offsets = torch.arange(frame_stack, device=frames.device)
    return frames[rows[:, None], times[:, None] + offsets]
