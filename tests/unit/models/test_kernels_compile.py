"""All Triton kernels compile to a GPU's machine code, seen without one: the interpreter takes more than a GPU does."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("triton")

KERNELS = {
    *("begin", "puct_select", "gumbel_select", "expand_and_backup"),
    *("_stack", "_convolve_in_turn", "_image_head", "_prefix_head"),
}
HOPPER = 90
SHARED_MEMORY = 99 * 1024
"""Bytes that a program may have on the smallest GPUs since 2020, compute capability 8.6 and 8.9."""


def test_kernels_compile_and_fit_into_shared_memory(tmp_path: pathlib.Path) -> None:
    program = pathlib.Path(__file__).with_name("compile_kernels.py")
    # Here they are interpreted; and what was compiled once would come out of Triton's cache.
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, str(program), str(HOPPER)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["kernel"] for kernel in compiled} == KERNELS
    assert [kernel for kernel in compiled if kernel["shared"] > SHARED_MEMORY or not kernel["code"]] == []
