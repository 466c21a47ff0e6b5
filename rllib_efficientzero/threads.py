"""Limits torch's number of threads: several are slower than one if they have to wait for free processor cores."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within the block torch computes with one thread, the number that Ray gives a trial. Beside other jobs, several
    threads would also waste CPU time by waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def one_thread_unless_told() -> Iterator[None]:
    """Within the block torch computes with one thread, unless OMP_NUM_THREADS is set; this is Ray's rule too."""
    with contextlib.nullcontext() if "OMP_NUM_THREADS" in os.environ else one_thread():
        yield
