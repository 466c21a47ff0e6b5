"""Freed memory is used again, without a page fault for each of its pages."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource
import numpy as np
from rllib_efficientzero.memory import reuse_freed_memory

def faults_of_large_arrays():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        first, second = np.ones(2_000_000), np.ones(1_000_000)  # 16 MB, 8 MB
        del first, second
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

took_effect = reuse_freed_memory()
faults_of_large_arrays()  # memory that the process never had faults once
print(int(took_effect), faults_of_large_arrays())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_large_arrays_take_no_new_pages() -> None:
    # In a process of its own: it cannot be switched off again.
    output = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True).stdout
    took_effect, faults = map(int, output.split())
    if not took_effect:
        pytest.skip("another C library")
    assert faults < 1000  # of 120,000 pages
