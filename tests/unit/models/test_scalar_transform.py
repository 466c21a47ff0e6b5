"""The compressed axis, its categorical targets and the cross-entropy, against plain float64 formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rllib_efficientzero.models.scalar_transform import (
    EPSILON,
    categorical_to_scalar,
    compress,
    cross_entropy,
    expand,
    largest_expressible,
    two_hot,
)


def plain_compress(x: float) -> float:
    """The published formula: sign(x) (sqrt(|x| + 1) - 1) + 0.001 x."""
    return math.copysign(math.sqrt(abs(x) + 1.0) - 1.0, x) + 0.001 * x


def plain_expand(y: float) -> float:
    """MuZero's inverse, as printed in its appendix F."""
    root = (math.sqrt(1.0 + 4.0 * EPSILON * (abs(y) + 1.0 + EPSILON)) - 1.0) / (2.0 * EPSILON)
    return math.copysign(root**2 - 1.0, y)


MAGNITUDES = np.logspace(-7, 6, 400)
SCALARS = torch.tensor(np.concatenate([-MAGNITUDES, [0.0], MAGNITUDES]), dtype=torch.float32)


def test_round_trip_is_exact_to_1e_4_relative_in_float32() -> None:
    back = expand(compress(SCALARS))
    assert back.dtype == torch.float32
    assert torch.all((back - SCALARS).abs() <= 1e-4 * SCALARS.abs())


def test_compress_is_the_published_formula() -> None:
    expected = torch.tensor([plain_compress(float(x)) for x in SCALARS], dtype=torch.float64)
    torch.testing.assert_close(compress(SCALARS).double(), expected, rtol=1e-6, atol=1e-13)


def test_expand_is_the_published_inverse() -> None:
    compressed = torch.linspace(-300, 300, 601)
    expected = torch.tensor([plain_expand(float(y)) for y in compressed], dtype=torch.float64)
    torch.testing.assert_close(expand(compressed).double(), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("x", "expected"), [(3.0, 1.003), (-3.0, -1.003), (-8.0, -2.008), (0.0, 0.0), (99.0, 9.099)])
def test_values_by_hand(x: float, expected: float) -> None:
    """-3 would become -0.997 with the linear term inside the sign, as the original code had it."""
    assert compress(torch.tensor(x)).item() == pytest.approx(expected, abs=1e-6)
    assert expand(torch.tensor(expected)).item() == pytest.approx(x, rel=1e-5)


def test_both_are_odd_and_increasing() -> None:
    for function in (compress, expand):
        values = function(SCALARS)
        torch.testing.assert_close(values, -function(-SCALARS), rtol=0, atol=0)
        ordered = function(SCALARS.double().sort().values)
        assert torch.all(ordered.diff() > 0)


@pytest.mark.parametrize("bin_value", [-300, -7, -1, 0, 1, 2, 300])
def test_two_hot_of_an_exact_integer_is_one_bin(bin_value: int) -> None:
    x = torch.tensor(plain_expand(float(bin_value)), dtype=torch.float64)
    target = two_hot(x, 300)
    assert target[bin_value + 300].item() == pytest.approx(1.0, abs=1e-9)
    assert target.sum().item() == pytest.approx(1.0, abs=1e-12)


def test_two_hot_of_zero_and_the_ends_has_exactly_one_bin() -> None:
    target = two_hot(torch.tensor([0.0, 1e9, -1e9, 58_000.0]), 5)
    expected = torch.zeros(4, 11)
    expected[0, 5] = expected[1, 10] = expected[2, 0] = expected[3, 10] = 1.0
    assert torch.equal(target, expected)


def test_two_hot_splits_between_neighbours() -> None:
    # h(1.5) = sqrt(2.5) - 1 + 0.0015 = 0.58263883
    target = two_hot(torch.tensor([1.5, -1.5]), 2)
    torch.testing.assert_close(
        target, torch.tensor([[0, 0, 0.41736117, 0.58263883, 0], [0, 0.58263883, 0.41736117, 0, 0]])
    )


def test_the_expectation_of_a_two_hot_target_is_the_value() -> None:
    inside = SCALARS[SCALARS.abs() < 50_000]
    target = two_hot(inside, 300)
    assert torch.all(target >= 0)
    assert torch.all((target > 0).sum(dim=-1) <= 2)
    torch.testing.assert_close(target.sum(dim=-1), torch.ones(len(inside)))
    decoded = categorical_to_scalar(target.clamp(min=1e-30).log())
    torch.testing.assert_close(decoded, inside, rtol=1e-3, atol=1e-3)


def test_two_hot_keeps_what_is_not_finite_visible() -> None:
    """An index made of NaN would be out of bounds: an abort on a GPU, where the learner's guard could not act."""
    target = two_hot(torch.tensor([[math.nan, 1.0], [math.inf, -math.inf]]), 3)
    assert target.shape == (2, 2, 7)
    for bad in (target[0, 0], target[1, 0], target[1, 1]):
        assert not torch.isfinite(bad).all()
    assert target[0, 1].sum().item() == pytest.approx(1.0)


def test_decoding_is_in_float32_whatever_the_logits() -> None:
    logits = torch.zeros(2, 601, dtype=torch.bfloat16)
    decoded = categorical_to_scalar(logits)
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, torch.zeros(2), rtol=0, atol=1e-4)


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    target = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    expected = [-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)), math.log(2.0)]
    torch.testing.assert_close(cross_entropy(logits, target), torch.tensor(expected))


def test_an_all_zero_target_costs_nothing_and_has_no_gradient() -> None:
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.zeros(3, 7)
    target[0, 2] = 1.0
    loss = cross_entropy(logits, target)
    loss.sum().backward()
    assert loss[0] > 0
    assert loss[1:].tolist() == [0.0, 0.0]
    assert torch.all(logits.grad[0] != 0)
    assert torch.all(logits.grad[1:] == 0)


@pytest.mark.parametrize("size", [5, 20, 300])
def test_the_largest_expressible_scalar_lies_at_the_end_of_the_support(size: int) -> None:
    largest = largest_expressible(size)
    assert plain_compress(largest) == pytest.approx(size, rel=1e-9)
    ends = two_hot(torch.tensor([largest * 1.01, 1e30, -1e30]), size)
    assert ends[:2, -1].tolist() == [1.0, 1.0]
    assert ends[2, 0] == 1.0
