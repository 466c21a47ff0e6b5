"""Makes RLlib's seeding cheaper in processes that only play: it must not import torch's compiler there."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Within the block, `torch.use_deterministic_algorithms` does not import torch's compiler.

    Given a seed, RLlib calls that function if torch has no CUDA. It also configures torch's compiler, whose import
    takes 2.6 s of CPU time and 120 MB in every EnvRunner's process, where nothing is ever compiled. If the compiler is
    already imported, the function stays as it is.
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
