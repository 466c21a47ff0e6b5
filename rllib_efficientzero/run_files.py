"""What a run leaves beside Tune's results: how it was played, and the score of every evaluation episode."""

from __future__ import annotations

import json
import os
import pathlib
from importlib import metadata
from typing import Any

PROTOCOL_FILE = "protocol.json"
EVALUATION_FILE = "evaluation.json"


def versions() -> dict[str, str | None]:
    """Versions of what results depend on."""
    return {package: _version(package) for package in ("rllib_efficientzero", "ray", "torch", "gymnasium", "numpy")}


def write_protocol(directory: pathlib.Path, protocol: dict[str, Any]) -> None:
    """Write `protocol.json`: environment protocol, budgets and versions."""
    _write(directory / PROTOCOL_FILE, protocol | {"versions": versions()})


def append_evaluation(directory: pathlib.Path, protocol: dict[str, Any], record: dict[str, Any]) -> None:
    """Add one evaluation to `evaluation.json`: `{"protocol", "versions", "evaluations": [...]}`."""
    path = directory / EVALUATION_FILE
    evaluations = json.loads(path.read_text())["evaluations"] if path.exists() else []
    _write(path, {"protocol": protocol, "versions": versions(), "evaluations": [*evaluations, record]})


def _write(path: pathlib.Path, content: dict[str, Any]) -> None:
    # Whole or not at all: a run may be killed at any moment.
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, path)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
