"""Table 6: compares the config of runs with the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rllib_efficientzero.analysis import reference


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    name: str
    paper: str
    ours: str
    """empty if the run has no such setting"""
    differs: bool


def compare(config: Mapping[str, Any], protocol: Mapping[str, Any]) -> list[Setting]:
    """Returns every setting of the paper, next to that of a run.

    Args:
        config: as RLlib resolved it, from `result.json` or `EfficientZeroConfig().to_dict()`.
        protocol: from `protocol.json`.
    """
    found = []
    for row in reference.paper_settings():
        source, path = (config, row["key"]) if "key" in row else (protocol, row["protocol"])
        value = _look_up(source, path)
        ours = "" if value is None else _shown(value)
        found.append(Setting(row["name"], row["paper"], ours, value is not None and not _equal(value, row["value"])))
    return found


def _look_up(source: Mapping[str, Any], path: str) -> Any:
    value: Any = source
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _equal(value: Any, expected: Any) -> bool:
    if isinstance(expected, list):
        return isinstance(value, list | tuple) and len(value) == len(expected) and all(map(_equal, value, expected))
    if isinstance(expected, float):
        return isinstance(value, int | float) and abs(value - expected) <= 1e-9 * max(1.0, abs(expected))
    return bool(value == expected)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(_shown, value)) if isinstance(value, list | tuple) else str(value)
