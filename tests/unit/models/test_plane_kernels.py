"""Network input by one kernel equals that made step by step on a CPU; without a GPU the kernel is interpreted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rllib_efficientzero.models import observations as observations_module
from rllib_efficientzero.models import unroll as unroll_module
from rllib_efficientzero.models.augmentation import draw_augmentation
from rllib_efficientzero.models.layers import ALIGNMENT, HalvingConv2d
from rllib_efficientzero.models.observations import Stacks, has_kernel_for, window_planes
from rllib_efficientzero.models.plane_layout import PlaneLayout
from rllib_efficientzero.models.unroll import unroll_planes

pytest.importorskip("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
UNROLL_STEPS = 5
# The interpreter cuts where a GPU rounds, twice where there is augmentation.
TOLERANCE = {torch.float32: 0.0, torch.bfloat16: 0.0 if DEVICE.type == "cuda" else 2**-6}


def allow_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (observations_module, unroll_module):
        monkeypatch.setattr(module, "has_kernel_for", lambda frames: True)


def random_frames(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("use_augmentation", [False, True])
@pytest.mark.parametrize(("size", "frame_stack"), [((12, 10, 3), 4), ((20, 20, 1), 4), ((7, 33, 3), 1)])
def test_a_batch_becomes_the_same_planes(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    use_augmentation: bool,
    size: tuple[int, int, int],
    frame_stack: int,
) -> None:
    drawn = [draw_augmentation(3, torch.Generator().manual_seed(seed)) for seed in range(2)]
    shift, intensity = (torch.stack(parts, dim=1) for parts in zip(*drawn, strict=True))
    batch = {"frames": random_frames(3, frame_stack + UNROLL_STEPS, *size), "shift": shift, "intensity": intensity}
    batch["actions"] = torch.zeros(3, UNROLL_STEPS)
    expected = unroll_planes(batch, use_augmentation=use_augmentation, dtype=dtype)
    allow_kernel(monkeypatch)
    on_device = {name: tensor.to(DEVICE) for name, tensor in batch.items()}
    # Again some frames of longer windows.
    on_device["frames"] = torch.cat((on_device["frames"], on_device["frames"][:, :1]), dim=1)[:, :-1]
    found = unroll_planes(on_device, use_augmentation=use_augmentation, dtype=dtype)
    for planes, known in zip(found, expected, strict=True):
        assert planes.dtype == dtype
        torch.testing.assert_close(planes.cpu(), known, rtol=0.0, atol=TOLERANCE[dtype])
    # What the networks take without turning it around: one step behind the other, channels last.
    for images in (found[0], found[1].transpose(0, 1).flatten(0, 1)):
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_stacks_are_picked_from_any_window_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = random_frames(4, 9, 6, 5, 3)
    rows, times = torch.tensor([3, 0, 0, 2]), torch.tensor([5, 0, 1, 4])
    expected = window_planes(Stacks(frames, rows, times, 4), torch.float32)
    allow_kernel(monkeypatch)
    found = window_planes(Stacks(frames.to(DEVICE), rows.to(DEVICE), times.to(DEVICE), 4), torch.float32)
    torch.testing.assert_close(found.cpu(), expected, rtol=0.0, atol=0.0)


def test_the_kernel_is_for_images_of_bytes_on_a_gpu() -> None:
    assert not has_kernel_for(torch.zeros(1, 4, 6, 6, 3, dtype=torch.uint8))
    on_gpu = DEVICE.type == "cuda"
    assert has_kernel_for(torch.zeros(1, 4, 6, 6, 3, dtype=torch.uint8, device=DEVICE)) == on_gpu
    assert not has_kernel_for(torch.zeros(1, 4, 6, 6, 3, device=DEVICE))
    assert not has_kernel_for(torch.zeros(1, 4, 6, dtype=torch.uint8, device=DEVICE))


def test_empty_planes_fill_up_to_a_multiple(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, rows, times = random_frames(2, 4, 6, 5, 3), torch.tensor([1, 0]), torch.tensor([0, 0])
    expected = window_planes(Stacks(frames, rows, times, 4), torch.float32)
    allow_kernel(monkeypatch)
    for multiple, count in ((8, 16), (5, 15), (12, 12)):
        on_device = Stacks(frames.to(DEVICE), rows.to(DEVICE), times.to(DEVICE), 4)
        found = window_planes(on_device, torch.float32, layout=PlaneLayout(multiple))
        assert found.shape == (2, count, 6, 5)
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found[:, :12].cpu(), expected, rtol=0.0, atol=0.0)
        assert not found[:, 12:].any()


@pytest.mark.parametrize("use_augmentation", [False, True])
@pytest.mark.parametrize(("size", "frame_stack"), [((12, 10, 3), 4), ((9, 7, 1), 4), ((8, 9, 2), 4)])
def test_pairs_of_columns_are_convolved_like_planes(
    monkeypatch: pytest.MonkeyPatch, use_augmentation: bool, size: tuple[int, int, int], frame_stack: int
) -> None:
    """And the weights have the same gradient."""
    conv = HalvingConv2d(frame_stack * size[-1], 6).double()
    stacks = Stacks(random_frames(2, frame_stack, *size), torch.tensor([1, 0, 1]), torch.zeros(3, dtype=torch.int64), 4)
    augmentation = draw_augmentation(3, torch.Generator().manual_seed(0)) if use_augmentation else None
    expected = conv(window_planes(stacks, torch.float32, augmentation=augmentation).double())
    expected.square().sum().backward()
    assert conv.weight.grad is not None
    gradient, conv.weight.grad = conv.weight.grad, None
    allow_kernel(monkeypatch)
    on_device = Stacks(*(part.to(DEVICE) for part in stacks[:3]), 4)
    if augmentation is not None:
        augmentation = (augmentation[0].to(DEVICE), augmentation[1].to(DEVICE))
    pairs = window_planes(
        on_device, torch.float32, augmentation=augmentation, layout=PlaneLayout(ALIGNMENT, paired=True)
    )
    assert pairs.is_contiguous(memory_format=torch.channels_last)
    found = conv(pairs.cpu().double())
    found.square().sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(conv.weight.grad, gradient)


def test_bytes_are_scaled_alike_by_product_and_quotient() -> None:
    """In bfloat16, for which the kernel does not divide."""
    values = torch.arange(256, dtype=torch.float32)
    assert torch.equal((values * (1.0 / 255.0)).bfloat16(), (values / 255.0).bfloat16())
