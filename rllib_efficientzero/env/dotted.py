"""Environments named by the dotted path of what makes them: a class, or a function of `env_config`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def is_dotted_path(env: str) -> bool:
    """Whether it reads `package.module.Class`; `Name-v2.5` does not, nor does `module:Name-v0`."""
    return "." in env and all(part.isidentifier() for part in env.split("."))


def dotted_path_of(make: Any) -> str:
    """The path of a class or function, by which others find it if it is defined in a module; of anything else its
    `str`, by which nobody does."""
    return f"{make.__module__}.{make.__qualname__}" if hasattr(make, "__qualname__") else str(make)


def import_maker(path: str) -> Callable[[Any], Any]:
    """What makes the environment.

    Raises:
        ImportError: the module cannot be imported, or has nothing of this name that can be called.
    """
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name, None)
    if not callable(found):
        raise ImportError(f"the module {module!r} has no class or function {name!r}")
    return found


def call_maker(make: Callable[[Any], Any], env_config: Mapping[str, Any]) -> Any:
    """As RLlib calls what makes environments. Its `EnvContext` is a dict that takes seconds to import."""
    try:
        return make(dict(env_config))
    except AttributeError:
        from ray.rllib.env.env_context import EnvContext

        return make(EnvContext(env_config, worker_index=0))
