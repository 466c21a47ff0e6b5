"""Settings of all tests."""

from __future__ import annotations

import gc
import inspect
import os
import sys
from types import FrameType

# Small networks are slower on two threads, and several processes with two each get in each other's way.
# Before torch is imported, and inherited by every process a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Ray would join a cluster that somebody else on this host has started, another run of these tests for instance, and
# refuse to be told how many CPUs there are.
os.environ.setdefault("RAY_ADDRESS", "local")
# Ray would start its processes with a niceness of 15: where cores are few, what a test waits for would hardly run
# beside a test that trains meanwhile.
os.environ.setdefault("RAY_worker_niceness", "0")
# Ray would start a process for every CPU at once, and most tests use one or two of them.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
# Kernels for GPUs run in Triton's interpreter where there is none. Read when the kernels are imported.
if not os.path.exists("/dev/nvidia0"):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# What pytest and its plugins import stays: it is looked through for garbage less often.
gc.set_threshold(100_000, 10, 10)


def _frames_alone(context: int = 1) -> list[inspect.FrameInfo]:
    """`inspect.stack` without source files and lines, which take a tenth of a second through pytest's deep stack. RLlib
    takes its caller's frame from it whenever a connector is made."""
    frame: FrameType | None = sys._getframe(1)
    frames = []
    while frame is not None:
        code = frame.f_code
        frames.append(inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, None, None))
        frame = frame.f_back
    return frames


inspect.stack = _frames_alone
