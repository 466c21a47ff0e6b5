"""Spaces as JSON, so that the spaces of a policy can be read without pickle."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np

MAX_ELEMENTS = 1 << 27
"""Elements of the largest observation that is accepted when reading."""
MAX_BOUNDS = 1 << 10
"""Boxes with more elements, whose bounds differ, are written with the lowest and the highest bound only."""


def space_to_json(space: gym.Space) -> dict[str, Any]:
    """A JSON-able description of a Box, Discrete, MultiDiscrete, MultiBinary or a Dict of these."""
    if isinstance(space, gym.spaces.Box):
        return {
            "type": "Box",
            "shape": list(space.shape),
            "dtype": np.dtype(space.dtype).name,
            "low": _bounds_to_json(space.low, np.min),
            "high": _bounds_to_json(space.high, np.max),
        }
    if isinstance(space, gym.spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, gym.spaces.MultiDiscrete) and space.nvec.ndim == 1 and not space.start.any():
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist()}
    if isinstance(space, gym.spaces.MultiBinary):
        return {"type": "MultiBinary", "n": int(space.n) if np.ndim(space.n) == 0 else list(space.shape)}
    if isinstance(space, gym.spaces.Dict):
        return {"type": "Dict", "spaces": {key: space_to_json(value) for key, value in space.spaces.items()}}
    raise ValueError(f"a policy over {space} cannot be written as JSON")


def space_from_json(described: Any) -> gym.Space:
    """Makes the space that `space_to_json` described. The description is not trusted.

    Raises:
        ValueError: it does not describe a space, or one larger than `MAX_ELEMENTS`.
    """
    try:
        kind = described["type"]
        if kind == "Box":
            return _box(described)
        if kind == "Discrete":
            return gym.spaces.Discrete(_size(described["n"]), start=int(described["start"]))
        if kind == "MultiDiscrete":
            return gym.spaces.MultiDiscrete(_sizes(described["nvec"]))
        if kind == "MultiBinary":
            n = described["n"]
            return gym.spaces.MultiBinary(_shape(n) if isinstance(n, list) else _size(n))
        if kind == "Dict":
            if any(part["type"] == "Dict" for part in described["spaces"].values()):
                raise ValueError("a Dict within a Dict is not supported")
            return gym.spaces.Dict({str(key): space_from_json(part) for key, part in described["spaces"].items()})
    except (KeyError, TypeError, AttributeError, OverflowError, AssertionError) as error:
        raise ValueError(f"{str(described)[:200]} does not describe a space") from error
    raise ValueError(f"a space of type {kind!r} is not known")


def _box(described: dict[str, Any]) -> gym.spaces.Box:
    shape, dtype = _shape(described["shape"]), np.dtype(str(described["dtype"]))
    if dtype.kind not in "biuf":
        raise ValueError(f"a Box of {dtype} is not supported")
    low, high = (_bounds_from_json(described[key], shape, dtype) for key in ("low", "high"))
    return gym.spaces.Box(low, high, shape=shape, dtype=dtype.type)


def _bounds_to_json(bounds: np.ndarray, widest: Any) -> Any:
    if bounds.size == 0 or (bounds == bounds.flat[0]).all():
        return _number_to_json(bounds.flat[0]) if bounds.size else 0
    if bounds.size > MAX_BOUNDS:
        return _number_to_json(widest(bounds))
    return [_number_to_json(bound) for bound in bounds.flat]


def _bounds_from_json(bounds: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """The bounds as an array of `shape`; a broadcast view, which takes no memory, if all bounds are equal."""
    if not isinstance(bounds, list):
        return np.broadcast_to(np.array(_number_from_json(bounds), dtype), shape)
    if len(bounds) > MAX_BOUNDS:
        raise ValueError(f"a Box has {len(bounds)} bounds")
    return np.array([_number_from_json(bound) for bound in bounds], dtype).reshape(shape)


def _number_to_json(number: Any) -> int | float | str:
    """The number, or a string if it is not finite, which JSON cannot express."""
    value = number.item()
    return value if isinstance(value, int) or math.isfinite(value) else str(value)


def _number_from_json(number: Any) -> int | float:
    return float(number) if isinstance(number, str) else number


def _shape(shape: Any) -> tuple[int, ...]:
    sizes = tuple(_size(size) for size in shape)
    if len(sizes) > 8 or math.prod(sizes) > MAX_ELEMENTS:
        raise ValueError(f"an observation of shape {str(shape)[:100]} is not believed")
    return sizes


def _sizes(sizes: Any) -> list[int]:
    if not isinstance(sizes, list) or not 0 < len(sizes) <= MAX_BOUNDS:
        raise ValueError(f"{str(sizes)[:100]} are not the sizes of few factors")
    return [_size(size) for size in sizes]


def _size(size: Any) -> int:
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= MAX_ELEMENTS:
        raise ValueError(f"{str(size)[:100]} is not a size")
    return size
