"""Triton kernel that makes network input from raw frames: it stacks, scales and augments in one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rllib_efficientzero.models.plane_layout import PLAIN, PlaneLayout
from rllib_efficientzero.models.triton_support import current

PIXELS = 256
"""Pixels that one program writes."""


@triton.jit
def _stack(
    frames, rows, times, shift, intensity, planes, row_stride,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, PLANES: tl.constexpr, FILLED: tl.constexpr,
    COLUMNS: tl.constexpr, MARGIN: tl.constexpr, LANES: tl.constexpr, PIXELS: tl.constexpr, AUGMENT: tl.constexpr,
):  # fmt: skip
    """Writes some pixels of a stack: `PLANES` planes, padded with empty ones to `FILLED`; `LANES` >= `FILLED`.

    A row has `COLUMNS` columns, of which `MARGIN` come before the image, and some may come after it.
    """
    stack, lanes = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    pixels = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    is_pixel = (pixels < HEIGHT * COLUMNS)[:, None]
    row, column = pixels // COLUMNS, pixels % COLUMNS - MARGIN
    is_plane = is_pixel & ((column >= 0) & (column < WIDTH))[:, None] & (lanes < PLANES)[None, :]
    if AUGMENT:
        row = tl.minimum(tl.maximum(row + tl.load(shift + 2 * stack).to(tl.int32), 0), HEIGHT - 1)
        column = tl.minimum(tl.maximum(column + tl.load(shift + 2 * stack + 1).to(tl.int32), 0), WIDTH - 1)
    frame = tl.load(times + stack) + lanes // CHANNELS
    of_frame = tl.load(rows + stack) * row_stride + frame * (HEIGHT * WIDTH * CHANNELS) + lanes % CHANNELS
    raw = tl.load(frames + of_frame[None, :] + ((row * WIDTH + column) * CHANNELS)[:, None], mask=is_plane, other=0)
    value = raw.to(tl.float32)
    # A division would take longer than all the rest. Rounded to bfloat16, product and quotient agree for every byte.
    value = value * (1.0 / 255.0) if planes.dtype.element_ty == tl.bfloat16 else tl.div_rn(value, 255.0)
    value = value.to(planes.dtype.element_ty)
    if AUGMENT:  # after rounding, as without this kernel
        value = (value.to(tl.float32) * tl.load(intensity + stack)).to(planes.dtype.element_ty)
    place = stack * (HEIGHT * COLUMNS * FILLED) + pixels[:, None] * FILLED + lanes[None, :]
    tl.store(planes + place, value, mask=is_pixel & (lanes < FILLED)[None, :])


def stacked_planes(
    frames: Tensor,
    rows: Tensor,
    times: Tensor,
    frame_stack: int,
    dtype: torch.dtype,
    augmentation: tuple[Tensor, Tensor] | None = None,
    layout: PlaneLayout = PLAIN,
) -> Tensor:
    """See `observations.window_planes`; frames are `[B, F, H, W, C]` uint8, each window contiguous."""
    (_, _, height, width, channels), count = frames.shape, len(rows)
    shift, intensity = (rows, rows) if augmentation is None else [part.contiguous() for part in augmentation]
    num_planes = frame_stack * channels
    filled, columns = layout.filled(num_planes), layout.columns(width)
    planes = torch.empty((count, height, columns, filled), dtype=dtype, device=frames.device)
    with current(frames.device):
        _stack[(count, triton.cdiv(height * columns, PIXELS))](
            frames, rows, times, shift, intensity, planes, frames.stride(0),
            HEIGHT=height, WIDTH=width, CHANNELS=channels, PLANES=num_planes, FILLED=filled,
            COLUMNS=columns, MARGIN=int(layout.paired), LANES=triton.next_power_of_2(filled), PIXELS=PIXELS,
            AUGMENT=augmentation is not None,
        )  # fmt: skip
    if layout.paired:
        planes = planes.view(count, height, columns // 2, 2 * filled)
    return planes.permute(0, 3, 1, 2)
