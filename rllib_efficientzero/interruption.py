"""Lets the driver ask all trials of a run, in any process or machine, to reach their next checkpoint soon.

The driver sets a key of its job in Ray's key-value store; algorithms look at it between updates, and evaluations
between steps. Only the command line sets it.
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
    """Whether the driver has asked. Calls the cluster's head node at most every half second; False without Ray."""
    global _next_look, _was_requested
    if not _was_requested and time.monotonic() >= _next_look and ray.is_initialized():
        _was_requested = bool(_internal_kv_exists(_key()))
        _next_look = time.monotonic() + SECONDS_BETWEEN_LOOKS
    return _was_requested


def _key() -> bytes:
    return f"rllib_efficientzero:interrupt:{ray.get_runtime_context().get_job_id()}".encode()
