"""Writes and reads what an experiment measured with trained networks: numbers as JSON, pictures as arrays."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rllib_efficientzero.checkpoint.files import write_file

VALUES_FILE = "measurement.json"
ARRAYS_FILE = "measurement.npz"
Log = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """The result of an experiment's `measure`."""

    values: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """A result read from disk, with the checkpoints and settings that it was made from."""

    path: pathlib.Path
    about: Mapping[str, Any]
    """`experiment`, `budget`, `parameters`, `checkpoints` (variant -> path, updates, ...), `versions`, `seconds`"""
    measured: Measured


class DamagedMeasurementError(ValueError):
    """A measurement cannot be read; the message says why."""


def directory_of(root: pathlib.Path, experiment: str, budget: str) -> pathlib.Path:
    """Returns the directory of an experiment's measurement below a directory of runs."""
    return root / budget / f"measurement_{experiment}"


def write(directory: pathlib.Path, about: Mapping[str, Any], measured: Measured) -> None:
    """Writes a measurement; its JSON file last, so that a measurement with this file is complete."""
    directory.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(directory / ARRAYS_FILE, **measured.arrays)  # type: ignore[arg-type]
    content = {**about, "values": measured.values}
    write_file(directory / VALUES_FILE, json.dumps(content, indent=1).encode())


def read(directory: pathlib.Path) -> Measurement | None:
    """The measurement in a directory; None if there is none.

    Raises:
        DamagedMeasurementError: a file cannot be read.
    """
    file = directory / VALUES_FILE
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        values = content.pop("values")
        with np.load(directory / ARRAYS_FILE, allow_pickle=False) as arrays:
            return Measurement(directory, content, Measured(values, dict(arrays)))
    except Exception as error:
        # Damaged archives raise various errors of zipfile, zlib and numpy.
        raise DamagedMeasurementError(f"{directory} is damaged: {type(error).__name__}: {error}") from error
