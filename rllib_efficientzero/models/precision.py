"""Where to compute in bfloat16."""

from __future__ import annotations

import contextlib

import torch


def low_precision(device: torch.device, enabled: bool) -> torch.dtype | None:
    """bfloat16 on GPUs that have it in hardware; elsewhere None (CPUs without AMX get slower by it)."""
    if enabled and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return None


def autocast(device: torch.device, enabled: bool) -> contextlib.AbstractContextManager:
    """A context that computes in `low_precision`, or changes nothing."""
    dtype = low_precision(device, enabled)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
