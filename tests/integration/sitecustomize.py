"""Python imports this where a process begins. `conftest.py` puts it into the path of those that tests start."""

from __future__ import annotations

import gc
import sys
import types

# Importing Ray and torch makes a million objects that stay. To look for garbage among them, again and again, takes a
# fifth of the time.
gc.set_threshold(100_000, 10, 10)

# RLlib imports its wrapper of DMControl, and so all of DMControl, where that is installed: a sixth of the time that a
# process takes to start. Most users do not have it, and no test uses the wrapper.
_wrapper = types.ModuleType("ray.rllib.env.wrappers.dm_control_wrapper")
_wrapper.DMCEnv = None  # type: ignore[attr-defined]
sys.modules[_wrapper.__name__] = _wrapper
