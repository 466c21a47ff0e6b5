"""Triton, where it can be had."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)


def succeeds(attempt: Callable[[], object], without_it: str) -> bool:
    """Whether kernels compile and run; a warning says why not, and what is `without_it`.

    Triton may be missing, find no C compiler, or not know the device.
    """
    try:
        attempt()
    except Exception as error:  # Triton has no exception of its own for what it may miss.
        logger.warning("%s: %s", without_it, reason_of(error))
        return False
    return True


def reason_of(error: Exception) -> str:
    """The first line of what it says, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, whatever device its arguments are on."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
