"""How many threads torch computes with: several are slower than one where they wait for a processor in turn."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """As many as Ray lets a trial have; beside other jobs, several would also spend the processor on waiting for each
    other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def one_thread_unless_told() -> Iterator[None]:
    """As Ray does it: whoever sets OMP_NUM_THREADS has as many as that."""
    with contextlib.nullcontext() if "OMP_NUM_THREADS" in os.environ else one_thread():
        yield
