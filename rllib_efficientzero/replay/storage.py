"""The replay on disk: immutable, content-addressed segment files, one state file, and a manifest written last.

    replay.json                    manifest: counters, generator, ongoing episodes; name, size, sha256 of every file
    state-<hash>.npz               what changes: lengths and ends of the episodes, priorities
    segment-<number>-<hash>.npz    what never changes: the steps with positions [number * 4096, (number + 1) * 4096)

A segment holds its steps' observations, actions, rewards and search results in the order of their positions. A full
segment is written only once: later saves hard-link its file. (So it may hold steps of episodes evicted since then; the
state file lists the episodes that are still stored.) Every file gets its final name only when it is complete, and the
manifest, which alone makes a save valid, is written last: a crash at any moment leaves the previous save intact.
Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from rllib_efficientzero.checkpoint.files import FileEntry, sync, write_file
from rllib_efficientzero.checkpoint.manifest import CheckpointError, check_size, read_sealed_json, seal_json

Arrays = dict[str, npt.NDArray[Any]]

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""In version 1, segments contained no steps of evicted episodes."""
MANIFEST = "replay.json"
_FILE_NAME = re.compile(r"(state|segment-\d{8})-[0-9a-f]{16}\.npz")


class ReplayLoadError(CheckpointError):
    """A saved replay is missing, incomplete or damaged; the message names the file."""


def finish_save(directory: Path, manifest: Mapping[str, Any], files: Mapping[str, FileEntry]) -> None:
    """Writes the manifest, which makes the save valid, and removes what an earlier save left in `directory`.

    Args:
        directory: where the files are already.
        manifest: JSON-able description; "format_version", "files" and "sha256" (of the rest) are added.
        files: name -> entry of the state file and of every segment.
    """
    content = {"format_version": FORMAT_VERSION, **manifest, "files": dict(files)}
    write_file(directory / MANIFEST, seal_json(content))
    sync(directory)
    for path in directory.iterdir():
        is_ours = _FILE_NAME.fullmatch(path.name) or path.name.endswith(".npz.tmp")
        if is_ours and path.name not in files:
            path.unlink()


def write_arrays(directory: Path, stem: str, arrays: Arrays) -> tuple[str, FileEntry]:
    """Writes `<stem>-<hash>.npz` unless it is there already; returns its name and its manifest entry."""
    buffer = io.BytesIO()
    np.savez(buffer, **cast(dict[str, Any], arrays))  # plain dtypes only, which numpy saves without pickling
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    path = directory / f"{stem}-{digest[:16]}.npz"
    if not path.exists():
        write_file(path, content)
    return path.name, FileEntry(size=len(content), sha256=digest)


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of the save in `directory`.

    Raises:
        ReplayLoadError: there is none, or it cannot be read.
    """
    path = directory / MANIFEST
    if not path.exists():
        raise ReplayLoadError(f"There is no saved replay in {directory}: {path} is missing.")
    try:
        manifest = read_sealed_json(path)
    except CheckpointError as error:
        raise ReplayLoadError(str(error)) from error
    version = manifest.get("format_version")
    if version not in READABLE_VERSIONS:
        raise ReplayLoadError(
            f"{path} has format version {version!r}, and this version of rllib_efficientzero reads replays of format "
            f"version {' and '.join(map(str, READABLE_VERSIONS))}."
        )
    return manifest


def read_state(directory: Path, manifest: Mapping[str, Any]) -> Arrays:
    """The state arrays of a save.

    Raises:
        ReplayLoadError: as `read_segments`.
    """
    names = [name for name in _file_names(directory, manifest) if name.startswith("state")]
    if len(names) != 1:
        raise ReplayLoadError(f"{directory / MANIFEST} names {len(names)} state files instead of 1.")
    return _read_arrays(directory / names[0], manifest["files"][names[0]])


def read_segments(directory: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[Path, Arrays]]:
    """(path, arrays) of each segment in the order of positions.

    Raises:
        ReplayLoadError: a file is missing, or its size or hash is not the manifest's.
    """
    for name in sorted(_file_names(directory, manifest)):
        if name.startswith("segment"):
            yield directory / name, _read_arrays(directory / name, manifest["files"][name])


def _file_names(directory: Path, manifest: Mapping[str, Any]) -> list[str]:
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(_FILE_NAME.fullmatch(name) for name in files):
        raise ReplayLoadError(f"{directory / MANIFEST} is damaged: its list of files is not one this package writes.")
    return list(files)


def _read_arrays(path: Path, entry: FileEntry) -> Arrays:
    try:
        check_size(path, entry)
        content = path.read_bytes()
    except CheckpointError as error:
        raise ReplayLoadError(str(error)) from error
    except OSError as error:
        raise ReplayLoadError(f"{path} cannot be read: {error.strerror}.") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != entry["sha256"]:
        raise ReplayLoadError(f"{path} is damaged: its sha256 is {digest} instead of {entry['sha256']}.")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, zipfile.BadZipFile) as error:
        raise ReplayLoadError(f"{path} is not a file of plain arrays: {error}.") from error
