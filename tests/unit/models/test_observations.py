"""Stacks of raw frames and network inputs against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rllib_efficientzero.models import observation_planes, stack_windows
from rllib_efficientzero.models.augmentation import augment, draw_augmentation
from rllib_efficientzero.models.observations import unrolled_stacks


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_planes_are_a_block_of_channels_per_frame(dtype: type) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, size=(2, 4, 5, 6, 3)).astype(dtype)
    planes = observation_planes(torch.from_numpy(frames))
    assert planes.shape == (2, 12, 5, 6)
    assert planes.dtype == torch.float32
    scale = 255.0 if dtype is np.uint8 else 1.0
    for sample in range(2):
        for frame in range(4):
            for channel in range(3):
                expected = frames[sample, frame, :, :, channel].astype(np.float32) / np.float32(scale)
                np.testing.assert_allclose(planes[sample, frame * 3 + channel], expected, rtol=1e-6)


def test_white_is_one_and_black_is_zero() -> None:
    planes = observation_planes(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2, 1))
    assert planes.flatten().tolist() == [0.0, 1.0]


def test_vectors_are_laid_side_by_side_unscaled() -> None:
    frames = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], dtype=torch.float64)
    planes = observation_planes(frames)
    assert planes.dtype == torch.float32
    assert planes.tolist() == [[1.0, 2.0, 3.0, 4.0]]


@pytest.mark.parametrize("frame_stack", [1, 3])
def test_stack_windows_equals_a_loop(frame_stack: int) -> None:
    # Frame j of window w says 100 w + its time, which is j - (S - 1).
    times_of_frames = np.arange(-(frame_stack - 1), 8)
    windows = torch.from_numpy(100 * np.arange(3)[:, None] + times_of_frames)[..., None]
    rows, times = torch.tensor([2, 0, 1, 1]), torch.tensor([0, 7, 3, 3])
    stacks = stack_windows(windows, rows, times, frame_stack)
    assert stacks.shape == (4, frame_stack, 1)
    for stack, row, time in zip(stacks, rows.tolist(), times.tolist(), strict=True):
        oldest_first = [100 * row + time - back for back in reversed(range(frame_stack))]
        assert stack[:, 0].tolist() == oldest_first


@pytest.mark.parametrize("shape", [(5, 6, 3), (2,)])
def test_unrolled_stacks_equal_slices(shape: tuple[int, ...]) -> None:
    frame_stack, unroll_steps = 4, 5
    frames = torch.rand(2, frame_stack + unroll_steps - 1, *shape)
    stacks = unrolled_stacks(observation_planes(frames), frame_stack, unroll_steps)
    for k in range(unroll_steps):
        torch.testing.assert_close(stacks[:, k], observation_planes(frames[:, k : k + frame_stack]))


def test_images_reach_the_networks_channels_last() -> None:
    """A convolution would otherwise turn its input around on every call."""
    planes = observation_planes(torch.randint(0, 256, (2, 8, 6, 6, 3), dtype=torch.uint8))
    augmented = augment(planes, *draw_augmentation(2, torch.Generator()))
    step_after_step = unrolled_stacks(planes, 4, 5).transpose(0, 1).flatten(0, 1)
    for images in (planes, augmented, step_after_step):
        assert images.is_contiguous(memory_format=torch.channels_last)
