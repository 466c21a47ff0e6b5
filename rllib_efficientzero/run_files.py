"""Files that a run writes beside Tune's results: the protocol of its environment, the score of every evaluation
episode, and a report if it diverged."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
from typing import Any

import pyarrow.fs

from rllib_efficientzero import metrics as names
from rllib_efficientzero.checkpoint.files import write_file
from rllib_efficientzero.checkpoint.manifest import versions

logger = logging.getLogger(__name__)

PROTOCOL_FILE = "protocol.json"
EVALUATION_FILE = "evaluation.json"
DIVERGENCE_FILE = "diverged.json"
ITERATION = "training_iteration"
"""Key of an evaluation's record: the iteration whose result contains it. Records of earlier versions do not have it."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run's files belong."""

    directory: pathlib.Path
    """on this machine; by default, Tune uploads nothing from there"""
    filesystem: pyarrow.fs.FileSystem | None = None
    """of the storage, if that is not this machine's"""
    path: str = ""
    """of the run's directory in the storage"""


def write_protocol(place: Place, protocol: dict[str, Any]) -> None:
    """Writes `protocol.json`: environment protocol, budgets and versions."""
    _write(place, PROTOCOL_FILE, protocol | {"versions": versions()})


def write_divergence(place: Place, error: str, last_updates: list[dict[str, Any]]) -> None:
    """Writes `diverged.json`: the error message, and the metrics and position ids of the last updates."""
    _write(place, DIVERGENCE_FILE, {"error": error, "last_updates": last_updates})


def append_evaluation(place: Place, protocol: dict[str, Any], record: dict[str, Any]) -> None:
    """Adds one evaluation to `evaluation.json`: `{"protocol", "versions", "evaluations": [...]}`."""
    if not (place.directory / EVALUATION_FILE).exists():
        _fetch(place, EVALUATION_FILE)
    evaluations = _read_evaluations(place.directory / EVALUATION_FILE)
    _write_evaluations(place, protocol, [*evaluations, record])


def forget_later_evaluations(
    place: Place, protocol: dict[str, Any], *, num_interactions: int, num_updates: int, iteration: int
) -> None:
    """Removes the evaluations that a run resumed at so many steps, updates and iterations will make again.

    Steps and updates do not suffice to tell: an evaluation in parallel to training has weights from before its
    iteration.
    """
    # The file in the storage is the valid one: the run may have continued on another machine in the meantime.
    _fetch(place, EVALUATION_FILE)
    evaluations = _read_evaluations(place.directory / EVALUATION_FILE)
    kept = [
        record
        for record in evaluations
        if record[names.NUM_INTERACTIONS_LIFETIME] <= num_interactions
        and record[names.NUM_UPDATES_LIFETIME] <= num_updates
        and record.get(ITERATION, 0) <= iteration
    ]
    if len(kept) < len(evaluations):
        _write_evaluations(place, protocol, kept)


def _read_evaluations(path: pathlib.Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["evaluations"] if path.exists() else []


def _write_evaluations(place: Place, protocol: dict[str, Any], evaluations: list[dict[str, Any]]) -> None:
    content = {"protocol": protocol, "versions": versions(), "evaluations": evaluations}
    _write(place, EVALUATION_FILE, content)


def _write(place: Place, name: str, content: dict[str, Any]) -> None:
    # Written atomically, as a run may be killed at any moment.
    place.directory.mkdir(parents=True, exist_ok=True)
    encoded = json.dumps(content, indent=1).encode()
    write_file(place.directory / name, encoded)
    if place.filesystem is None:
        return
    target = f"{place.path}/{name}"
    try:
        place.filesystem.create_dir(place.path, recursive=True)
        with place.filesystem.open_output_stream(f"{target}.tmp") as stream:
            stream.write(encoded)
        place.filesystem.move(f"{target}.tmp", target)
    except OSError as error:
        # No reason to end the run: the file is on this machine, and the next evaluation uploads all of them again.
        logger.warning("%s could not be written to the storage: %s", target, error)


def _fetch(place: Place, name: str) -> None:
    """Downloads the storage's file of this name, if there is one."""
    source = f"{place.path}/{name}"
    if place.filesystem is None or place.filesystem.get_file_info(source).type != pyarrow.fs.FileType.File:
        return
    with place.filesystem.open_input_stream(source) as stream:
        content = stream.read()
    place.directory.mkdir(parents=True, exist_ok=True)
    write_file(place.directory / name, content)
