"""Environments named by the dotted path of their maker: a class or function that is called with `env_config`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def is_dotted_path(env: str) -> bool:
    """Whether `env` has the form `package.module.Class`, unlike `Name-v2.5` or `module:Name-v0`."""
    return "." in env and all(part.isidentifier() for part in env.split("."))


def dotted_path_of(make: Any) -> str:
    """The path of a class or function, which `import_maker` finds if it is defined at a module's top level; `str(make)`
    of anything else, which cannot be imported."""
    return f"{make.__module__}.{make.__qualname__}" if hasattr(make, "__qualname__") else str(make)


def import_maker(path: str) -> Callable[[Any], Any]:
    """Imports the class or function that makes the environment.

    Raises:
        ImportError: the module cannot be imported, or has nothing of this name that can be called.
    """
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name, None)
    if not callable(found):
        raise ImportError(f"the module {module!r} has no class or function {name!r}")
    return found


def call_maker(make: Callable[[Any], Any], env_config: Mapping[str, Any]) -> Any:
    """Makes the environment from a plain dict; only if that lacks an attribute, from an `EnvContext`, as RLlib does.

    `EnvContext` is a dict with further attributes, and takes seconds to import.
    """
    try:
        return make(dict(env_config))
    except AttributeError:
        from ray.rllib.env.env_context import EnvContext

        return make(EnvContext(env_config, worker_index=0))
