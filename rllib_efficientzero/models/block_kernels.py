"""Triton kernel for residual blocks on small images in inference: a series of 3x3 convolutions in one launch.

Every program processes whole images, so that no convolution waits for another program. Each convolution reads the
output of the one before from the cache. Its nine taps are nine matrix products, `[pixels, C]` by `[C, C]`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rllib_efficientzero.models.triton_support import current

PIXELS, STAGES = 128, 3
"""The most pixels of one program, which processes whole images, and the taps whose inputs are loaded in advance."""
FEW_IMAGES = 128
"""Up to this many images, each has its own program, so that more multiprocessors take part."""
WARPS = 4
CHANNELS = (16, 32, 64)
"""The numbers of channels that the kernel supports."""


@triton.jit
def _convolved(
    x, weight, pixels, row, column, is_pixel,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, PIXELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`[PIXELS, C]` float32: a convolution, with the images padded by zeros."""
    channels = tl.arange(0, C)
    y = tl.zeros((PIXELS, C), dtype=tl.float32)
    for tap in range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        is_row, is_column = (row + down >= 0) & (row + down < HEIGHT), (column + right >= 0) & (column + right < WIDTH)
        near = (pixels + down * WIDTH + right)[:, None] * C + channels[None, :]
        # All taps read nearly the same pixels: ".ca" keeps them in the multiprocessor's own cache.
        is_near = (is_pixel & is_row & is_column)[:, None]
        of_near = tl.load(x + near, mask=is_near, other=0.0, cache_modifier=".ca")
        of_tap = tl.load(weight + (tap * C + channels)[:, None] * C + channels[None, :])
        y = tl.dot(of_near, of_tap, y, input_precision=PRECISION)
    return y


@triton.jit
def _convolve_in_turn(
    x, number, response, weights, biases, between, out, num_pixels,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, PIXELS: tl.constexpr, NUM: tl.constexpr,
    HAS_STEM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`NUM` convolutions. With a stem the first one has a shortcut, else the second, and then every other one."""
    local, channels = tl.arange(0, PIXELS), tl.arange(0, C)
    size: tl.constexpr = HEIGHT * WIDTH
    used: tl.constexpr = PIXELS // size * size
    pixels = tl.program_id(0) * used + local
    is_pixel = (local < used) & (pixels < num_pixels)
    row, column = local % size // WIDTH, local % WIDTH
    at, is_pixel_of_all = pixels[:, None] * C + channels[None, :], is_pixel[:, None]
    for i in tl.static_range(NUM):
        before = x if i == 0 else between + (i - 1) * num_pixels * C
        weight = weights + i * 9 * C * C
        y = _convolved(before, weight, pixels, row, column, is_pixel, HEIGHT, WIDTH, C, PIXELS, PRECISION)
        y += tl.load(biases + i * C + channels)[None, :].to(tl.float32)
        if i == 0 and HAS_STEM:
            factor = tl.load(number + pixels // size, mask=is_pixel, other=0.0).to(tl.float32)
            of_planes = tl.load(response + (local % size)[:, None] * C + channels[None, :]).to(tl.float32)
            y += factor[:, None] * of_planes
        if (i % 2 == 0) == HAS_STEM:
            shortcut = x if i < 2 else between + (i - 2) * num_pixels * C
            y += tl.load(shortcut + at, mask=is_pixel_of_all, other=0.0).to(tl.float32)
        # NaNs must reach the logits, by which a search notices them.
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL).to(out.dtype.element_ty)
        if i == NUM - 1:
            tl.store(out + at, y, mask=is_pixel_of_all)
        else:
            tl.store(between + i * num_pixels * C + at, y, mask=is_pixel_of_all)
            # Other threads of this program read it in the next convolution.
            tl.debug_barrier()


def residual_blocks_fit(num_channels: int, height: int, width: int) -> bool:
    """Whether the kernel takes images of this size."""
    return num_channels in CHANNELS and 16 <= height * width <= PIXELS


@torch.library.custom_op("rllib_efficientzero::residual_blocks", mutates_args=())
def residual_blocks(x: Tensor, weights: Tensor, biases: Tensor, number: Tensor, response: Tensor) -> Tensor:
    """Residual blocks. If there is a response, a stem comes first: a convolution whose shortcut is the input.

    Args:
        x: `[B, C, h, w]`, channels last, of a size for which `residual_blocks_fit`.
        weights: `[n, 3, 3, C, C]` of the convolutions: row and column of the tap, channels in, channels out.
        biases: `[n, C]`.
        number, response: `[B]` and `[h, w, C]`; the stem adds their product. Without elements if there is no stem.

    Returns:
        `[B, C, h, w]`, channels last: the output of the last block.
    """
    batch, channels, height, width = x.shape
    pixels = triton.next_power_of_2(height * width) if batch <= FEW_IMAGES else PIXELS
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    between = x.new_empty(len(weights) - 1, batch * height * width, channels)
    images = pixels // (height * width)
    with current(x.device):
        _convolve_in_turn[(triton.cdiv(batch, images),)](
            x, number, response, weights, biases, between, out, batch * height * width,
            HEIGHT=height, WIDTH=width, C=channels, PIXELS=pixels, NUM=len(weights), HAS_STEM=response.numel() > 0,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
            num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
    return out


@residual_blocks.register_fake
def _(x: Tensor, weights: Tensor, biases: Tensor, number: Tensor, response: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)
