"""Helpers for using Triton where it works."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)


def succeeds(attempt: Callable[[], object], without_it: str) -> bool:
    """Whether `attempt`, which compiles and runs kernels, succeeds. If not, warns with `without_it` and the reason.

    Triton may be missing, find no C compiler, or not support the device.
    """
    try:
        attempt()
    except Exception as error:  # Triton has no common exception class for these failures
        logger.warning("%s: %s", without_it, reason_of(error))
        return False
    return True


def reason_of(error: Exception) -> str:
    """The first line of an error's message, or the name of its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context in which `device` is current: Triton launches on the current device, whatever that of its arguments."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
