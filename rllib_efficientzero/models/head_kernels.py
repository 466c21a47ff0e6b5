"""Triton kernels of the prediction heads in inference, from a latent or an LSTM state to logits in one kernel.

A head has few operations on few numbers: layer by layer, a GPU would spend its time on starting and ending kernels.

Each program computes `ROOTS` rows. Its warps share the sum over a hidden layer's inputs: each warp multiplies some of
the inputs by their weights, and the warps' products are added up once, at the end. Numbers are rounded to the dtype of
the network after each layer, as they are without the kernels; sums are float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rllib_efficientzero.models.triton_support import current

ROOTS = 16
"""Rows per program: the fewest that tensor cores take."""
WARPS = 4
"""Warps of a program."""
POSITIONS = 4
"""Positions of a latent that a program processes at once, shared by its warps."""
POSITION_STAGES = 4
"""Iterations over positions whose inputs are loaded at the same time."""
FEATURES = 32
"""Inputs of the value prefix head in one product; there are `WARPS` products at once."""
FEATURE_STAGES = 3
"""As `POSITION_STAGES`."""
OUTPUTS = 256
"""Logits that a program computes at once."""
OUTPUT_STAGES = 3
"""As `POSITION_STAGES`."""


# --- Kernels ---------------------------------------------------------------------------------------------------------


@triton.jit
def _image_head(
    latent, reduce_weight, reduce_bias, hidden_weight, hidden_bias, out_weight, out_bias, logits, num_roots,
    P: tl.constexpr, C: tl.constexpr, R: tl.constexpr, H: tl.constexpr, OUT: tl.constexpr, OPERAND: tl.constexpr,
    ROOTS: tl.constexpr, POSITIONS: tl.constexpr, OUTPUTS: tl.constexpr,
    STAGES: tl.constexpr, OUTPUT_STAGES: tl.constexpr,
):  # fmt: skip
    """`latent` is `[B, P, C]`, `reduce_weight` `[R, C]`, `hidden_weight` `[P, R, H]`, `out_weight` `[OUT, H]`."""
    first = tl.program_id(0).to(tl.int64) * ROOTS
    latent += first * (P * C)
    positions, roots = tl.arange(0, POSITIONS)[:, None, None], tl.arange(0, ROOTS)[None, :, None]
    channels, reduced, hidden = tl.arange(0, C), tl.arange(0, R), tl.arange(0, H)
    weight = tl.load(reduce_weight + reduced[None, :] * C + channels[:, None])
    weight = tl.broadcast_to(weight[None, :, :], (POSITIONS, C, R)).to(OPERAND)
    bias = tl.load(reduce_bias + reduced)[None, None, :].to(tl.float32)
    total = tl.zeros((POSITIONS, ROOTS, H), tl.float32)
    for start in tl.range(0, P, POSITIONS, num_stages=STAGES):
        at, is_position = start + positions, start + positions < P
        x = tl.load(
            latent + roots * (P * C) + at * C + channels[None, None, :],
            mask=is_position & (first + roots < num_roots), other=0.0,
        )  # fmt: skip
        # Positions past the end have zero weights.
        of_hidden = tl.load(
            hidden_weight + at * (R * H) + reduced[None, :, None] * H + hidden[None, None, :],
            mask=is_position,
            other=0.0,
        )
        y = tl.dot(x.to(OPERAND), weight, input_precision="ieee") + bias
        y = _rectified(y).to(latent.dtype.element_ty)
        total = tl.dot(y.to(OPERAND), of_hidden.to(OPERAND), total, input_precision="ieee")
    _write_logits(
        total, hidden_bias, out_weight, out_bias, logits, first, num_roots,
        H, OUT, OPERAND, ROOTS, OUTPUTS, OUTPUT_STAGES,
    )  # fmt: skip


@triton.jit
def _prefix_head(
    state, scale, shift, hidden_weight, hidden_bias, out_weight, out_bias, logits, num_roots, row_stride,
    L: tl.constexpr, H: tl.constexpr, OUT: tl.constexpr, OPERAND: tl.constexpr,
    ROOTS: tl.constexpr, PARTS: tl.constexpr, FEATURES: tl.constexpr, OUTPUTS: tl.constexpr,
    STAGES: tl.constexpr, OUTPUT_STAGES: tl.constexpr,
):  # fmt: skip
    """`state` is `[B, L]`, its rows `row_stride` apart; `hidden_weight` is `[H, L]`, `out_weight` `[OUT, H]`."""
    first = tl.program_id(0).to(tl.int64) * ROOTS
    state += first * row_stride
    roots, hidden = tl.arange(0, ROOTS)[None, :, None], tl.arange(0, H)[None, None, :]
    features = tl.arange(0, PARTS)[:, None] * FEATURES + tl.arange(0, FEATURES)[None, :]
    total = tl.zeros((PARTS, ROOTS, H), tl.float32)
    for start in tl.range(0, L, PARTS * FEATURES, num_stages=STAGES):
        at, is_feature = start + features, start + features < L
        h = tl.load(
            state + roots * row_stride + at[:, None, :],
            mask=is_feature[:, None, :] & (first + roots < num_roots), other=0.0,
        )  # fmt: skip
        # Features past the end have zero weights.
        of_hidden = tl.load(hidden_weight + hidden * L + at[:, :, None], mask=is_feature[:, :, None], other=0.0)
        factor = tl.load(scale + at, mask=is_feature, other=0.0)[:, None, :]
        summand = tl.load(shift + at, mask=is_feature, other=0.0)[:, None, :]
        x = _rectified(h.to(tl.float32) * factor + summand).to(state.dtype.element_ty)
        total = tl.dot(x.to(OPERAND), of_hidden.to(OPERAND), total, input_precision="ieee")
    _write_logits(
        total, hidden_bias, out_weight, out_bias, logits, first, num_roots,
        H, OUT, OPERAND, ROOTS, OUTPUTS, OUTPUT_STAGES,
    )  # fmt: skip


@triton.jit
def _write_logits(
    total, hidden_bias, out_weight, out_bias, logits, first, num_roots,
    H: tl.constexpr, OUT: tl.constexpr, OPERAND: tl.constexpr, ROOTS: tl.constexpr, OUTPUTS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Computes and writes the logits from the partial sums `[N, ROOTS, H]` of the hidden layer."""
    roots, hidden, outputs = tl.arange(0, ROOTS)[:, None], tl.arange(0, H), tl.arange(0, OUTPUTS)
    y = tl.sum(total, axis=0) + tl.load(hidden_bias + hidden)[None, :].to(tl.float32)
    y = _rectified(y).to(logits.dtype.element_ty).to(OPERAND)
    logits += first * OUT
    bias = tl.load(out_bias + outputs, mask=outputs < OUT, other=0.0)
    for start in tl.range(0, OUT, OUTPUTS, num_stages=STAGES):
        at, is_output = start + outputs, start + outputs < OUT
        weight = tl.load(out_weight + at[None, :] * H + hidden[:, None], mask=is_output[None, :], other=0.0)
        # Loaded one iteration ahead by hand: Triton does so for the weights, but not for these, which are too narrow.
        next_bias = tl.load(out_bias + OUTPUTS + at, mask=OUTPUTS + at < OUT, other=0.0)
        z = tl.dot(y, weight.to(OPERAND), input_precision="ieee") + bias[None, :].to(tl.float32)
        is_logit = (first + roots < num_roots) & is_output[None, :]
        tl.store(logits + roots * OUT + at[None, :], z.to(logits.dtype.element_ty), mask=is_logit)
        bias = next_bias


@triton.jit
def _rectified(x):
    """ReLU that keeps NaNs: they must reach the logits, by which a search notices them."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


# --- The kernels as PyTorch operations, which torch.compile does not look into ---------------------------------------


@torch.library.custom_op("rllib_efficientzero::image_head", mutates_args=())
def image_head(
    latent: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
) -> Tensor:
    """`[B, C, h, w]` latents -> `[B, out]` logits.

    Args:
        latent: preferably channels last; other layouts are copied first.
        reduce_weight, reduce_bias: `[R, C, 1, 1]` and `[R]`, of the 1x1 convolution.
        hidden_weight, hidden_bias: `[h * w, R, H]` and `[H]`, contiguous; see `fused_modules.FusedImageHead`.
        out_weight, out_bias: `[out, H]` and `[out]`.
    """
    positions_last = latent.permute(0, 2, 3, 1).contiguous()
    num_roots, num_outputs = len(latent), len(out_weight)
    logits = latent.new_empty(num_roots, num_outputs)
    _, reduced, hidden = hidden_weight.shape
    with current(latent.device):
        _image_head[(triton.cdiv(num_roots, ROOTS),)](
            positions_last, reduce_weight.contiguous(), reduce_bias, hidden_weight, hidden_bias, out_weight, out_bias,
            logits, num_roots,
            P=latent.shape[2] * latent.shape[3], C=latent.shape[1], R=reduced, H=hidden, OUT=num_outputs,
            OPERAND=_operand(latent), ROOTS=ROOTS, POSITIONS=POSITIONS, OUTPUTS=_outputs(num_outputs),
            STAGES=POSITION_STAGES, OUTPUT_STAGES=OUTPUT_STAGES, num_warps=WARPS,
        )  # fmt: skip
    return logits


@image_head.register_fake
def _(
    latent: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
) -> Tensor:
    return latent.new_empty(latent.shape[0], out_weight.shape[0])


@torch.library.custom_op("rllib_efficientzero::prefix_head", mutates_args=())
def prefix_head(
    state: Tensor,
    scale: Tensor,
    shift: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
) -> Tensor:
    """`[B, 2 * L]` LSTM states -> `[B, out]` logits.

    Args:
        state: h and c side by side, each row contiguous.
        scale, shift: `[L]` float32, the folded normalisation of h.
        hidden_weight, hidden_bias, out_weight, out_bias: `[H, L]`, `[H]`, `[out, H]` and `[out]`.
    """
    num_roots, num_outputs = len(state), len(out_weight)
    logits = state.new_empty(num_roots, num_outputs)
    hidden, num_features = hidden_weight.shape
    with current(state.device):
        _prefix_head[(triton.cdiv(num_roots, ROOTS),)](
            state, scale, shift, hidden_weight, hidden_bias, out_weight, out_bias, logits, num_roots, state.stride(0),
            L=num_features, H=hidden, OUT=num_outputs, OPERAND=_operand(state), ROOTS=ROOTS, PARTS=WARPS,
            FEATURES=FEATURES, OUTPUTS=_outputs(num_outputs), STAGES=FEATURE_STAGES, OUTPUT_STAGES=OUTPUT_STAGES,
            num_warps=WARPS,
        )  # fmt: skip
    return logits


@prefix_head.register_fake
def _(
    state: Tensor,
    scale: Tensor,
    shift: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
) -> Tensor:
    return state.new_empty(state.shape[0], out_weight.shape[0])


def _operand(x: Tensor) -> tl.dtype:
    """The dtype of the operands of matrix products: Triton's interpreter, for CPUs, cannot multiply bfloat16."""
    return tl.bfloat16 if x.dtype == torch.bfloat16 and x.device.type == "cuda" else tl.float32


def _outputs(num_outputs: int) -> int:
    """`OUTPUTS`, or fewer if the head has fewer, but at least the 16 that tensor cores need."""
    return min(OUTPUTS, max(16, triton.next_power_of_2(num_outputs)))
