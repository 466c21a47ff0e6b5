"""Asking the trials of a run to come to a checkpoint soon, across processes and machines.

The driver asks through Ray's key-value store, under its job; algorithms look there between updates, and evaluations
between steps. Without Ray, and outside of the command line, nobody asks.
"""

from __future__ import annotations

import time

import ray
from ray.experimental.internal_kv import _internal_kv_exists, _internal_kv_put

SECONDS_BETWEEN_LOOKS = 0.5

_next_look = 0.0
_was_requested = False


def request() -> None:
    """Asks all trials of this driver's job to end their iteration early."""
    _internal_kv_put(_key(), b"1", overwrite=True)


def requested() -> bool:
    """Whether the driver has asked; costs a call to the cluster's head node every half second."""
    global _next_look, _was_requested
    if not _was_requested and time.monotonic() >= _next_look and ray.is_initialized():
        _was_requested = bool(_internal_kv_exists(_key()))
        _next_look = time.monotonic() + SECONDS_BETWEEN_LOOKS
    return _was_requested


def _key() -> bytes:
    return f"rllib_efficientzero:interrupt:{ray.get_runtime_context().get_job_id()}".encode()
