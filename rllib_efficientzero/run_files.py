"""What a run leaves beside Tune's results: how it was played, the score of every evaluation episode, and how it ended
where it diverged."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from rllib_efficientzero import metrics as names
from rllib_efficientzero.checkpoint.files import write_file
from rllib_efficientzero.checkpoint.manifest import versions

PROTOCOL_FILE = "protocol.json"
EVALUATION_FILE = "evaluation.json"
DIVERGENCE_FILE = "diverged.json"
ITERATION = "training_iteration"
"""Of an evaluation: the iteration in whose result it is. Records of earlier versions do not have it."""


def write_protocol(directory: pathlib.Path, protocol: dict[str, Any]) -> None:
    """Write `protocol.json`: environment protocol, budgets and versions."""
    _write(directory / PROTOCOL_FILE, protocol | {"versions": versions()})


def write_divergence(directory: pathlib.Path, error: str, last_updates: list[dict[str, Any]]) -> None:
    """Write `diverged.json`: the error's sentence; metrics and position ids of the last updates."""
    _write(directory / DIVERGENCE_FILE, {"error": error, "last_updates": last_updates})


def append_evaluation(directory: pathlib.Path, protocol: dict[str, Any], record: dict[str, Any]) -> None:
    """Add one evaluation to `evaluation.json`: `{"protocol", "versions", "evaluations": [...]}`."""
    evaluations = _read_evaluations(directory / EVALUATION_FILE)
    _write_evaluations(directory, protocol, [*evaluations, record])


def forget_later_evaluations(
    directory: pathlib.Path, protocol: dict[str, Any], *, num_interactions: int, num_updates: int, iteration: int
) -> None:
    """Take those out of `evaluation.json` that a run resumed at so many steps, updates and iterations will make again.

    Steps and updates alone do not tell: an evaluation beside training is of weights from before its iteration.
    """
    evaluations = _read_evaluations(directory / EVALUATION_FILE)
    kept = [
        record
        for record in evaluations
        if record[names.NUM_INTERACTIONS_LIFETIME] <= num_interactions
        and record[names.NUM_UPDATES_LIFETIME] <= num_updates
        and record.get(ITERATION, 0) <= iteration
    ]
    if len(kept) < len(evaluations):
        _write_evaluations(directory, protocol, kept)


def _read_evaluations(path: pathlib.Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["evaluations"] if path.exists() else []


def _write_evaluations(directory: pathlib.Path, protocol: dict[str, Any], evaluations: list[dict[str, Any]]) -> None:
    content = {"protocol": protocol, "versions": versions(), "evaluations": evaluations}
    _write(directory / EVALUATION_FILE, content)


def _write(path: pathlib.Path, content: dict[str, Any]) -> None:
    # Whole or not at all: a run may be killed at any moment.
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(content, indent=1).encode())
