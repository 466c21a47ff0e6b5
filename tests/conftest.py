"""Settings of all tests."""

import os

# Small networks are slower on two threads, and several processes with two each get in each other's way.
# Before torch is imported, and inherited by every process a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
