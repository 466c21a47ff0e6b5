"""Python imports this where a process begins. `conftest.py` puts it into the path of those that tests start."""

from __future__ import annotations

import gc
import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any

# Importing Ray and torch makes a million objects that stay. To look for garbage among them, again and again, takes a
# fifth of the time.
gc.set_threshold(100_000, 10, 10)


class NoDMControl(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Empties RLlib's wrapper of DMControl. RLlib imports it in every process, and so all of DMControl where that is
    installed: a sixth of the time that a process takes to start. Most users do not have it, and no test uses the
    wrapper."""

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        is_wrapper = name == "ray.rllib.env.wrappers.dm_control_wrapper"
        return importlib.machinery.ModuleSpec(name, self) if is_wrapper else None

    def exec_module(self, module: types.ModuleType) -> None:
        module.DMCEnv = None  # type: ignore[attr-defined]


sys.meta_path.insert(0, NoDMControl())
