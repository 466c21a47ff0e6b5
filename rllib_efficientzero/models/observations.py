"""From raw frames to network input. Frames are stored single and raw, and are stacked here, on the device."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from rllib_efficientzero.models.augmentation import augment
from rllib_efficientzero.models.plane_layout import PLAIN, PlaneLayout
from rllib_efficientzero.models.triton_support import succeeds


def observation_planes(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Stacked frames, oldest first -> network input.

    Args:
        frames: `[B, S, H, W, C]` images (uint8 in 0..255, or floats) or `[B, S, D]` vectors.
        dtype: of the result.

    Returns:
        `[B, S * C, H, W]`, a block of C planes per frame, uint8 scaled to 0..1, laid out channels last; or
        `[B, S * D]`.
    """
    if frames.ndim == 3:
        return frames.flatten(1).to(dtype)
    if frames.device.type == "cpu":
        # On a CPU, stacking bytes first and converting them afterwards is several times faster than both at once.
        planes = [plane for frame in frames.unbind(1) for plane in frame.unbind(-1)]
        channels_last = torch.stack(planes, dim=-1).to(dtype)
        if frames.dtype == torch.uint8:
            channels_last.div_(255.0)
    else:
        rows_of_planes = frames.permute(0, 2, 3, 1, 4)
        scaled = torch.empty(rows_of_planes.shape, dtype=dtype, device=frames.device)
        torch.div(rows_of_planes, 255.0 if frames.dtype == torch.uint8 else 1.0, out=scaled)
        channels_last = scaled.flatten(3)
    return channels_last.permute(0, 3, 1, 2)


def unrolled_stacks(planes: Tensor, frame_stack: int, unroll_steps: int) -> Tensor:
    """All K stacks of S + K - 1 consecutive frames.

    Args:
        planes: `[B, (S + K - 1) * C, H, W]` or `[B, (S + K - 1) * D]` network input of the frames, oldest first.
        frame_stack: S.
        unroll_steps: K stacks, each one frame later than the one before.

    Returns:
        `[B, K, S * C, H, W]`, channels last, or `[B, K, S * D]`. In memory the steps follow each other: K is the
        outermost dimension.
    """
    width = planes.shape[1] // (frame_stack + unroll_steps - 1)
    channels_last = planes.movedim(1, -1)
    stacks = [channels_last[..., k * width : (k + frame_stack) * width] for k in range(unroll_steps)]
    return torch.stack(stacks).movedim(-1, 2).transpose(0, 1)


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
    first = rows * frames.shape[1] + times
    picked = first[:, None] + torch.arange(frame_stack, device=frames.device)
    # Copies whole frames; indexing each axis separately would gather single numbers.
    return frames.flatten(0, 1).index_select(0, picked.flatten()).unflatten(0, picked.shape)


class Stacks(NamedTuple):
    """The arguments of `stack_windows`: stacks that are yet to be made from windows of frames."""

    frames: Tensor  # [B, F, ...]
    rows: Tensor  # [M]
    times: Tensor  # [M]
    frame_stack: int


def window_planes(
    stacks: Stacks,
    dtype: torch.dtype,
    *,
    augmentation: tuple[Tensor, Tensor] | None = None,
    layout: PlaneLayout = PLAIN,
) -> Tensor:
    """Makes network input from stacks: `stack_windows`, `observation_planes`, and `augment` if one is given.

    For images on a GPU all of this is one kernel.

    Args:
        stacks: M of them.
        dtype: of the result.
        augmentation: shifts `[M, 2]` and intensities `[M]`, for images.
        layout: of the kernel's output, where any layout costs the same; see `EfficientZeroNetwork.plane_layout`.

    Returns:
        `[M, S * C, H, W]`, channels last, or the shape of `layout` if the kernel makes it; or `[M, S * D]`.
    """
    if has_kernel_for(stacks.frames):
        from rllib_efficientzero.models.plane_kernels import stacked_planes

        return stacked_planes(*stacks, dtype, augmentation, layout)
    planes = observation_planes(stack_windows(*stacks), dtype)
    return planes if augmentation is None else augment(planes, *augmentation)


def has_kernel_for(frames: Tensor) -> bool:
    """Whether stacks of these frames are made by one kernel."""
    is_image = frames.dtype == torch.uint8 and frames.ndim == 5
    return is_image and frames.device.type == "cuda" and _has_kernel(frames.device)


@functools.cache
def _has_kernel(device: torch.device) -> bool:
    def stack() -> None:
        from rllib_efficientzero.models.plane_kernels import stacked_planes

        zero = torch.zeros(1, dtype=torch.int64, device=device)
        frames = torch.zeros(1, 1, 2, 2, 1, dtype=torch.uint8, device=device)
        stacked_planes(frames, zero, zero, 1, torch.float32)

    return succeeds(stack, f"{device} stacks frames step by step, which takes longer")
