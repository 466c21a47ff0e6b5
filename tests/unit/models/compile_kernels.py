"""Compiles all kernels for GPUs, as a program, where there is none; `test_kernels_compile.py` calls it.

What is launched elsewhere is compiled here, down to the machine code of an architecture. A line per kernel, JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from rllib_efficientzero.mcts import SearchConfig
from rllib_efficientzero.mcts.device_tree import DeviceTree
from rllib_efficientzero.models import fused_modules, head_kernels
from rllib_efficientzero.models.plane_kernels import stacked_planes
from rllib_efficientzero.models.plane_layout import PLAIN, PlaneLayout

CPU = torch.device("cpu")


class AbsentDevice(DriverBase):
    """A GPU of an architecture, as far as Triton asks before it launches anything."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_active_torch_device(self) -> torch.device:
        return CPU

    def get_benchmarker(self) -> Any:
        raise NotImplementedError


def compile_instead(self: JITFunction, grid: Any) -> Any:
    """In the place of a launch."""

    def compiled(*arguments: Any, **options: Any) -> None:
        kernel = self.run(*arguments, grid=grid, warmup=True, **options)
        found = {"kernel": self.__name__, "shared": kernel.metadata.shared, "code": len(kernel.asm["cubin"])}
        sys.stdout.write(json.dumps(found) + "\n")

    return compiled


def grow_trees() -> None:
    """The kernels of both policies' trees."""
    for policy in ("puct", "gumbel"):
        tree = DeviceTree(8, 6, SearchConfig(policy=policy), CPU)
        tree.reset(np.zeros((8, 6), np.float32), value=np.zeros(8, np.float32), seed=0)
        tree.select()
        tree.expand_and_backup(torch.zeros(8), torch.zeros(8), torch.zeros(8, 6))


def make_planes() -> None:
    """The kernel that makes network input, in its layouts."""
    frames = torch.zeros(2, 14, 96, 96, 3, dtype=torch.uint8)
    places, augmentation = torch.zeros(8, dtype=torch.int64), (torch.zeros(8, 2, dtype=torch.int64), torch.ones(8))
    for layout in (PLAIN, PlaneLayout(multiple=8, paired=True)):
        for augmented in (None, augmentation):
            stacked_planes(frames, places, places, 4, torch.bfloat16, augmented, layout)


if __name__ == "__main__":
    driver.set_active(AbsentDevice(int(sys.argv[1])))
    JITFunction.__getitem__ = compile_instead
    # Tensors lie on a CPU, for which the heads would multiply float32.
    head_kernels._operand = lambda x: tl.bfloat16 if x.dtype == torch.bfloat16 else tl.float32
    grow_trees()
    make_planes()
    fused_modules.try_kernels(CPU, torch.bfloat16)
