"""The replay on disk: immutable, content-addressed segment files, one state file, and a manifest written last.

    replay.json                    manifest: counters, generator, ongoing episodes; name, size, sha256 of every file
    state-<hash>.npz               what changes: lengths and ends of the episodes, priorities
    segment-<number>-<hash>.npz    what never changes: the steps with positions [number * 4096, (number + 1) * 4096)

A segment holds its steps' observations, actions, rewards and search results in the order of their positions, so a full
segment stays the same from save to save (until one of its episodes is evicted) and can be shared between saves. Every
file gets its final name only when it is whole, and the manifest, which alone makes a save valid, comes last: a crash
at any moment leaves the previous save intact. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]

FORMAT_VERSION = 1
MANIFEST = "replay.json"
_FILE_NAME = re.compile(r"(state|segment-\d{8})-[0-9a-f]{16}\.npz")


class ReplayLoadError(ValueError):
    """A saved replay is missing, incomplete or damaged; the message names the file."""


def write_save(
    directory: Path, manifest: Mapping[str, Any], state: Arrays, segments: Iterable[tuple[int, Arrays]]
) -> None:
    """Writes a save into `directory` (made if needed), replacing an earlier one there only when whole.

    Args:
        directory: where to.
        manifest: JSON-able description; "format_version", "files" and "sha256" (of the rest) are added.
        state: the mutable arrays.
        segments: (number, arrays) of each segment.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = dict([_write_arrays(directory, "state", state)])
    files.update(_write_arrays(directory, f"segment-{number:08d}", arrays) for number, arrays in segments)
    content = {"format_version": FORMAT_VERSION, **manifest, "files": files}
    content["sha256"] = _hash_of_json(content)
    _write_file(directory / MANIFEST, json.dumps(content, indent=1).encode())
    _sync_directory(directory)
    for path in directory.iterdir():
        is_ours = _FILE_NAME.fullmatch(path.name) or path.name.endswith(".npz.tmp")
        if is_ours and path.name not in files:
            path.unlink()


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of the save in `directory`.

    Raises:
        ReplayLoadError: there is none, or it cannot be read.
    """
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ReplayLoadError(f"There is no saved replay in {directory}: {path} is missing.") from error
    except ValueError as error:
        raise ReplayLoadError(f"{path} is damaged: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        raise ReplayLoadError(f"{path} is not a replay manifest of format version {FORMAT_VERSION}.")
    digest = manifest.pop("sha256", None)
    if digest != _hash_of_json(manifest):
        raise ReplayLoadError(f"{path} is damaged: its content does not have the sha256 {digest} that it states.")
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


def _write_arrays(directory: Path, stem: str, arrays: Arrays) -> tuple[str, dict[str, Any]]:
    """Writes `<stem>-<hash>.npz` unless it is there already; returns its name and its manifest entry."""
    buffer = io.BytesIO()
    np.savez(buffer, **cast(dict[str, Any], arrays))  # plain dtypes only: nothing of theirs is pickled
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    path = directory / f"{stem}-{digest[:16]}.npz"
    if not path.exists():
        _write_file(path, content)
    return path.name, {"size": len(content), "sha256": digest}


def _read_arrays(path: Path, entry: Mapping[str, Any]) -> Arrays:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ReplayLoadError(f"{path} cannot be read: {error.strerror}.") from error
    if len(content) != entry["size"]:
        raise ReplayLoadError(f"{path} has {len(content)} bytes instead of {entry['size']}: it is incomplete.")
    digest = hashlib.sha256(content).hexdigest()
    if digest != entry["sha256"]:
        raise ReplayLoadError(f"{path} is damaged: sha256 {digest} instead of {entry['sha256']}.")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, zipfile.BadZipFile) as error:
        raise ReplayLoadError(f"{path} is not a file of plain arrays: {error}.") from error


def _hash_of_json(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _write_file(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
