"""Settings of all tests."""

import os

# Small networks are slower on two threads, and several processes with two each get in each other's way.
# Before torch is imported, and inherited by every process a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Ray would join a cluster that somebody else on this host has started, another run of these tests for instance, and
# refuse to be told how many CPUs there are.
os.environ.setdefault("RAY_ADDRESS", "local")
# Ray would start its processes with a niceness of 15: where cores are few, what a test waits for would hardly run
# beside a test that trains meanwhile.
os.environ.setdefault("RAY_worker_niceness", "0")
# Kernels for GPUs run in Triton's interpreter where there is none. Read when the kernels are imported.
if not os.path.exists("/dev/nvidia0"):
    os.environ.setdefault("TRITON_INTERPRET", "1")
