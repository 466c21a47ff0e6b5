"""Random shifts and intensities against padding and cropping."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rllib_efficientzero.models.augmentation import augment, draw_augmentation


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def augmented(planes: Tensor, seed: int) -> Tensor:
    return augment(planes, *draw_augmentation(len(planes), seeded(seed)))


def find_crop(sample: Tensor, original: Tensor) -> tuple[int, int, float]:
    """(row, column, intensity) of the one crop of the padded original that `sample` is."""
    height, width = original.shape[-2:]
    padded = F.pad(original[None], (4, 4, 4, 4), mode="replicate")[0]
    found = []
    for row in range(9):
        for column in range(9):
            crop = padded[:, row : row + height, column : column + width]
            scale = float((sample.sum() / crop.sum()).item())
            if torch.allclose(sample, scale * crop, rtol=1e-4, atol=1e-6):
                found.append((row, column, scale))
    assert len(found) == 1
    return found[0]


def test_a_sample_is_one_crop_of_its_replicated_padding_times_one_intensity() -> None:
    planes = torch.rand(64, 6, 12, 10, generator=seeded(0))
    crops = [find_crop(after, before) for after, before in zip(augmented(planes, 1), planes, strict=True)]
    rows, columns, scales = zip(*crops, strict=True)
    assert set(rows) == set(columns) == set(range(9))
    assert any(row != column for row, column in zip(rows, columns, strict=True))
    assert all(0.9 - 1e-4 <= scale <= 1.1 + 1e-4 for scale in scales)
    assert len({round(scale, 4) for scale in scales}) > 50


def test_intensity_is_normal_with_5_per_cent_cut_at_two_deviations() -> None:
    scales = augmented(torch.ones(20_000, 1, 1, 1), 0).flatten()
    assert abs(scales.mean().item() - 1.0) < 0.002
    assert 0.045 < scales.std().item() < 0.05  # 0.05 * 0.9605 after the cut
    assert scales.min().item() >= 0.9 - 1e-6
    assert scales.max().item() <= 1.1 + 1e-6
    assert 0.03 < (scales > 1.0999).float().mean().item() + (scales < 0.9001).float().mean().item() < 0.06


def test_the_generator_is_the_only_randomness() -> None:
    planes = torch.rand(4, 3, 16, 16)
    torch.manual_seed(0)
    first = augmented(planes, 3)
    torch.manual_seed(1)
    assert torch.equal(first, augmented(planes, 3))
    assert not torch.equal(first, augmented(planes, 4))


def test_the_input_is_left_alone() -> None:
    planes = torch.rand(4, 3, 16, 16)
    copy = planes.clone()
    augmented(planes, 0)
    assert torch.equal(planes, copy)
