"""Scalars as categorical distributions over a compressed axis (MuZero, appendix F; EfficientZero, appendix A).

Values and value prefixes are regressed with a cross-entropy loss: a scalar x is compressed by h(x), then written as the
two neighbouring integers of a support -size..size whose weighted mean is h(x).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 0.001


def compress(x: Tensor) -> Tensor:
    """h(x) = sign(x) (sqrt(|x| + 1) - 1) + eps x, elementwise.

    The linear term stands outside the sign: inside it, as in the code that accompanied the paper, it has the wrong sign
    for every negative x. Written as x / (sqrt(|x| + 1) + 1), which is the same and keeps the digits of small numbers.
    """
    return x / (torch.sqrt(x.abs() + 1.0) + 1.0) + EPSILON * x


def expand(y: Tensor) -> Tensor:
    """The inverse of `compress`, elementwise.

    With d = sqrt(|x| + 1) - 1, |y| = d + eps (d^2 + 2 d) and |x| = d (d + 2). Solved for d by the formula that does not
    subtract nearly equal numbers, so that small values keep their digits in float32.
    """
    magnitude = y.abs()
    slope = 1.0 + 2.0 * EPSILON
    d = 2.0 * magnitude / (slope + torch.sqrt(slope * slope + 4.0 * EPSILON * magnitude))
    return torch.sign(y) * d * (d + 2.0)


def largest_expressible(support_size: int) -> float:
    """The scalar at the end of the support, to which `two_hot` clamps targets.

    Computes `expand` with Python numbers: with a tensor, the host would wait for a GPU, and it could not be compiled.
    """
    slope = 1.0 + 2.0 * EPSILON
    d = 2.0 * support_size / (slope + math.sqrt(slope * slope + 4.0 * EPSILON * support_size))
    return d * (d + 2.0)


def two_hot(x: Tensor, support_size: int) -> Tensor:
    """Categorical targets for scalars.

    Args:
        x: `[...]` scalars in reward units, clamped to the ends of the support. Non-finite scalars give NaN.
        support_size: the support is the integers -support_size..support_size of the compressed axis.

    Returns:
        `[..., 2 * support_size + 1]` probabilities, at most two of them non-zero.
    """
    position = compress(x).clamp(-support_size, support_size) + support_size
    # An index must not be NaN (on a GPU that would end the process); the weights may, so that the learner notices it.
    low = position.nan_to_num(0.0).floor()
    high_weight = torch.where(torch.isfinite(x), position - low, torch.nan).unsqueeze(-1)
    low_index = low.long().unsqueeze(-1)
    high_index = (low_index + 1).clamp(max=2 * support_size)
    target = torch.zeros(*x.shape, 2 * support_size + 1, dtype=x.dtype, device=x.device)
    # scatter_add, not scatter: at the upper end both indices are the same bin, and both weights must count.
    target.scatter_add_(-1, low_index, 1.0 - high_weight)
    return target.scatter_add_(-1, high_index, high_weight)


def categorical_to_scalar(logits: Tensor) -> Tensor:
    """`[..., 2 * size + 1]` logits -> `[...]` expected values in reward units, always computed in float32."""
    size = (logits.shape[-1] - 1) // 2
    support = torch.arange(-size, size + 1, dtype=torch.float32, device=logits.device)
    return expand(F.softmax(logits.float(), dim=-1) @ support)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum target log softmax(logits) over the last axis: `[..., n]`, `[..., n]` -> `[...]`, in float32.

    An all-zero target (of an absorbing state) has loss 0 and no gradient.
    """
    return -(target * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1)
