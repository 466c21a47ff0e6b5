"""Convolutions that rectify compute what a representation computes without them."""

from __future__ import annotations

import pytest
import torch
from test_fused_modules import make
from torch import Tensor, nn

from rllib_efficientzero.models.folding import FoldedCopy
from rllib_efficientzero.models.layers import ALIGNMENT, ResidualBlock
from rllib_efficientzero.models.plane_layout import PlaneLayout
from rllib_efficientzero.models.rectified_convolutions import (
    RectifiedBlock,
    RectifiedStem,
    rectified_convolution,
    rectify,
    try_convolutions,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = {torch.float32: 1e-3 if DEVICE.type == "cuda" else 1e-5, torch.bfloat16: 2e-2}


def planes(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)


def in_pairs(images: Tensor) -> Tensor:
    """As the kernel lays them out for a first convolution."""
    batch, count, height, width = images.shape
    layout = PlaneLayout(ALIGNMENT, paired=True)
    laid_out = images.new_zeros(batch, height, layout.columns(width), layout.filled(count))
    laid_out[:, :, 1 : width + 1, :count] = images.permute(0, 2, 3, 1)
    return laid_out.view(batch, height, layout.columns(width) // 2, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(96, 80), (24, 31)])
def test_a_representation_computes_the_same(dtype: torch.dtype, size: tuple[int, int]) -> None:
    network = make(size)
    plain, rectified = FoldedCopy(network, dtype).module, FoldedCopy(network, dtype, rectify).module
    kinds = [type(module) for module in rectified.representation.modules()]
    assert kinds.count(RectifiedStem) == 1
    assert kinds.count(ResidualBlock) == 0 < kinds.count(RectifiedBlock)
    assert nn.ReLU not in kinds
    images = planes(3, 6, *size).to(dtype)
    with torch.inference_mode():
        expected = plain.represent(images).float()
        for given in (images, in_pairs(images)):
            found = rectified.represent(given).float()
            assert (found - expected).norm() <= DTYPES[dtype] * expected.norm()
    assert (expected > 0).any()


def test_weights_that_change_are_followed() -> None:
    network = make()
    copy, images = FoldedCopy(network, torch.float32, rectify), planes(2, 6, 96, 80)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    copy.update()
    with torch.inference_mode():
        torch.testing.assert_close(copy.module.represent(images), network.represent(images), rtol=1e-3, atol=1e-3)


def test_channels_that_do_not_fit_are_left_alone() -> None:
    representation = FoldedCopy(make(channels=12), torch.float32, rectify).module.representation
    assert not any(isinstance(module, RectifiedStem | RectifiedBlock) for module in representation.modules())


@pytest.mark.parametrize("has_shortcut", [False, True])
def test_what_is_told_of_a_result_is_so(has_shortcut: bool) -> None:
    """To the compiler, before it is computed; a compiled network computes the same."""
    x = planes(2, 16, 9, 8).contiguous(memory_format=torch.channels_last)
    weight, bias = planes(16, 16, 3, 3) - 0.5, planes(16)
    arguments = (x, weight, bias, [1, 1], [1, 1], x.clone() if has_shortcut else None)
    with torch.inference_mode(False):
        torch.library.opcheck(rectified_convolution, arguments, test_utils=("test_schema", "test_faketensor"))


def test_a_device_is_asked_whether_it_can() -> None:
    try_convolutions(DEVICE, torch.bfloat16)


def test_a_representation_is_compiled_once_for_batches_of_any_size() -> None:
    network = make((24, 31))
    represent = FoldedCopy(network, torch.float32, rectify).module.represent
    compiled = torch.compile(represent, backend="aot_eager", dynamic=True)
    compiled(in_pairs(planes(3, 6, 24, 31)))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (4, 9):
            images = in_pairs(planes(batch, 6, 24, 31))
            torch.testing.assert_close(compiled(images), represent(images))
