"""Python imports this where a process begins. `conftest.py` puts it into the path of those that tests start."""

from __future__ import annotations

import gc

# Importing Ray and torch makes a million objects that stay. To look for garbage among them, again and again, takes a
# fifth of the time.
gc.set_threshold(100_000, 10, 10)
