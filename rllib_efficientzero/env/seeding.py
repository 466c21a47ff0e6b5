"""RLlib's seeding, without what it costs a process that only plays."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Within, deterministic algorithms are asked for without importing torch's compiler, unless it is there already.

    Given a seed, RLlib asks for them where torch has no CUDA, and torch tells its compiler, whose import takes 2.6 s of
    CPU time and 120 MB in every EnvRunner's process; but what is called there is never compiled.
    """
    if "torch._inductor" in sys.modules:
        yield
        return
    before = torch.use_deterministic_algorithms
    torch.use_deterministic_algorithms = _use_deterministic_algorithms
    try:
        yield
    finally:
        torch.use_deterministic_algorithms = before


def _use_deterministic_algorithms(mode: bool, *, warn_only: bool = False) -> None:
    on = "warn" if warn_only else "error"
    torch.set_deterministic_debug_mode(on if mode else "default")
