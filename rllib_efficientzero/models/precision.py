"""Decides on which devices to compute in bfloat16."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

MixedPrecision = bool | str
"""False: never bfloat16; True: on GPUs that have it in hardware; `ON_CPUS`: also on CPUs that have it."""
ON_CPUS = "cpu"
PRECISIONS: tuple[MixedPrecision, ...] = (True, False, ON_CPUS)


def low_precision(device: torch.device, enabled: MixedPrecision) -> torch.dtype | None:
    """bfloat16 if it is enabled and the device has instructions for it, else None; it is never emulated."""
    if enabled and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    if enabled == ON_CPUS and device.type == "cpu" and cpu_has_bfloat16():
        return torch.bfloat16
    return None


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16 matrices; False if torch is too old to tell."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def autocast(device: torch.device, enabled: MixedPrecision) -> contextlib.AbstractContextManager:
    """Returns an autocast context for the dtype of `low_precision`, or a context without effect if that is None."""
    dtype = low_precision(device, enabled)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
