"""Where to compute in bfloat16."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

MixedPrecision = bool | str
"""False: never; True: on GPUs that have it in hardware; `ON_CPUS`: on CPUs that have it, too."""
ON_CPUS = "cpu"
PRECISIONS: tuple[MixedPrecision, ...] = (True, False, ON_CPUS)


def low_precision(device: torch.device, enabled: MixedPrecision) -> torch.dtype | None:
    """bfloat16 where it was asked for and the device has instructions for it; elsewhere None, and emulated never."""
    if enabled and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    if enabled == ON_CPUS and device.type == "cpu" and cpu_has_bfloat16():
        return torch.bfloat16
    return None


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies matrices in bfloat16, and torch is recent enough to know."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def autocast(device: torch.device, enabled: MixedPrecision) -> contextlib.AbstractContextManager:
    """A context that computes in `low_precision`, or changes nothing."""
    dtype = low_precision(device, enabled)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
