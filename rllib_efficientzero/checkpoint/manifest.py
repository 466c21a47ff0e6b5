"""`manifest.json`, which is written last: a checkpoint is complete if it has one and its files match the entries."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rllib_efficientzero.checkpoint.files import (
    FileEntry,
    hash_file,
    replaced_original,
    replaced_path,
    sync,
    write_file,
)

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
RLLIB_MARK = "rllib_checkpoint.json"
"""A file that RLlib puts into every checkpoint of an Algorithm."""
FORMAT_VERSION = 1
WRITTEN_SINCE = {1: "0.1.0"}
"""Format version -> first version of this package that writes and reads it."""
MAX_JSON_BYTES = 1 << 26
"""More than a checkpoint needs: 40 bytes for an episode in progress, 180 for 4,096 steps of the replay."""
DEPENDENCIES = ("rllib_efficientzero", "ray", "torch", "gymnasium", "numpy")


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message is one sentence that names the file and what is wrong with it."""


def versions() -> dict[str, str | None]:
    """Versions of the packages on which results depend."""
    return {package: _version(package) for package in DEPENDENCIES}


def write_manifest(directory: pathlib.Path, known: Mapping[str, FileEntry], **description: Any) -> None:
    """Writes the manifest of all files below `directory`; call it when everything else is written.

    Args:
        directory: the checkpoint.
        known: relative path -> entry, of files already synced to the disk, which need not be read and hashed again.
        description: further JSON-able entries.
    """
    files: dict[str, FileEntry] = {}
    for path in _files_below(directory):
        name = path.relative_to(directory).as_posix()
        if name in known:
            files[name] = known[name]
            continue
        sync(path)
        files[name] = hash_file(path)
    content = {"format_version": FORMAT_VERSION, "versions": versions(), **description, "files": files}
    write_file(directory / MANIFEST, seal_json(content))


def read_manifest(directory: pathlib.Path) -> dict[str, Any]:
    """Reads a checkpoint's manifest and checks its hash, its format version and the form of its entries.

    Raises:
        CheckpointError: there is none, or it is damaged, or it is from a later version.
    """
    path = directory / MANIFEST
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a checkpoint: there is no such directory.")
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: the checkpoint is incomplete, or older than rllib_efficientzero "
            f"{WRITTEN_SINCE[1]}, whose development versions wrote none and alone can read it."
        )
    manifest = read_sealed_json(path)
    found = manifest.get("format_version")
    if found not in WRITTEN_SINCE:
        needed = manifest.get("versions", {}).get("rllib_efficientzero", "a later version")
        raise CheckpointError(
            f"{path} has format version {found!r}, and this version of rllib_efficientzero reads up to "
            f"{FORMAT_VERSION}: the checkpoint needs rllib_efficientzero {needed}."
        )
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise CheckpointError(f"{path} is damaged: it has no list of files.")
    for name, entry in files.items():
        _check_entry(path, name, entry)
    return manifest


def verify(directory: pathlib.Path, *, below: str = "") -> dict[str, Any]:
    """Checks every file of a checkpoint against its manifest, and returns the manifest.

    Args:
        directory: the checkpoint.
        below: check only the files whose relative path begins with this.

    Raises:
        CheckpointError: a file is missing, or is not the one that was written.
    """
    manifest = read_manifest(directory)
    for name, entry in manifest["files"].items():
        if name.startswith(below):
            check_file(directory / name, entry)
    return manifest


def check_file(path: pathlib.Path, entry: FileEntry) -> None:
    """Compares a file with its manifest entry.

    Raises:
        CheckpointError: it is missing, or of another size or content.
    """
    check_size(path, entry)
    found = hash_file(path)["sha256"]
    if found != entry["sha256"]:
        raise CheckpointError(f"{path} is damaged: its sha256 is {found} instead of {entry['sha256']}.")


def check_size(path: pathlib.Path, entry: FileEntry) -> None:
    """Compares a file's size with its manifest entry, without reading it.

    Raises:
        CheckpointError: it is missing, a link, or of another size.
    """
    if path.is_symlink() or not path.is_file():
        raise CheckpointError(f"{path} is missing, a file of {entry['size']} bytes with sha256 {entry['sha256']}.")
    size = path.stat().st_size
    if size != entry["size"]:
        raise CheckpointError(
            f"{path} is incomplete: it has {size} bytes instead of {entry['size']} with sha256 {entry['sha256']}."
        )


def find_newest(
    directory: pathlib.Path, *, below: str = "", warn: Callable[[str], object] = logger.warning
) -> pathlib.Path | None:
    """The newest complete `checkpoint_*` in a trial's directory; None if there is none.

    Args:
        directory: the trial's.
        below: see `verify`.
        warn: called for every incomplete or damaged checkpoint that is passed over, with what is wrong with it.
    """
    for replaced in directory.glob(replaced_path(directory / "checkpoint_*").name):
        recover_replaced(replaced_original(replaced))
    for path in sorted(directory.glob("checkpoint_*"), reverse=True):
        try:
            verify(path, below=below)
        except CheckpointError as error:
            warn(f"checkpoint passed over: {error}")
            continue
        return path
    return None


def check_replaceable(directory: pathlib.Path) -> None:
    """Refuses a place that holds anything but a checkpoint, since writing a checkpoint replaces the whole directory.

    Raises:
        CheckpointError: it is a file, a mount point, or a directory that is neither empty nor a checkpoint.
    """
    if os.path.ismount(directory.resolve()):
        raise CheckpointError(
            f"{directory} is where a file system is mounted, which cannot be replaced: name a directory in it, such as "
            f"{directory / 'checkpoint'}."
        )
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory} is a file: a checkpoint is a directory.")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / RLLIB_MARK).is_file():
        raise CheckpointError(
            f"{directory} holds something that is no checkpoint, and a checkpoint would take its place: "
            f"name a new directory, such as {directory / 'checkpoint'}."
        )


def recover_replaced(directory: pathlib.Path) -> None:
    """Restores the older checkpoint if the writer of its replacement ended between the two renames."""
    directory = directory.resolve()
    replaced = replaced_path(directory)
    if not directory.exists() and replaced.is_dir():
        logger.warning("%s was being replaced when its writer ended; the older one is used", directory)
        replaced.rename(directory)


# --- JSON that contains its own hash ---------------------------------------------------------------------------------


def seal_json(content: Mapping[str, Any]) -> bytes:
    """JSON of `content` with the hash of the rest under "sha256"."""
    return json.dumps({**content, "sha256": hash_json(content)}, indent=1, allow_nan=False).encode()


def read_sealed_json(path: pathlib.Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Reads what `seal_json` wrote, without the hash.

    Raises:
        CheckpointError: the file cannot be read, is too large, or does not match its hash.
    """
    try:
        size = path.stat().st_size
        content = json.loads(path.read_bytes()) if size <= max_bytes else None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is not JSON ({error}).") from error
    if size > max_bytes:
        raise CheckpointError(f"{path} is not one this package writes: it has {size} bytes, more than {max_bytes}.")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it is not a JSON object.")
    stated = content.pop("sha256", None)
    found = hash_json(content)
    if stated != found:
        raise CheckpointError(f"{path} is damaged: the sha256 of its content is {found} instead of {stated}.")
    return content


def hash_json(value: Mapping[str, Any]) -> str:
    """The sha256 of a JSON object, independent of white space and of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# --- Helpers ---------------------------------------------------------------------------------------------------------


def _files_below(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != MANIFEST)


def _check_entry(path: pathlib.Path, name: str, entry: Any) -> None:
    parts = pathlib.PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or parts.as_posix() != name or "\\" in name or "\0" in name:
        raise CheckpointError(f"{path} names a file outside of its directory: {name!r}.")
    good = isinstance(entry, dict) and isinstance(entry.get("size"), int) and isinstance(entry.get("sha256"), str)
    if not good or not re.fullmatch(r"[0-9a-f]{64}", entry["sha256"]):
        raise CheckpointError(f"{path} is damaged: its entry of {name!r} is not a size and a sha256.")


def _version(package: str) -> str | None:
    # Imported here to keep the import of this module fast, as the command line needs it at its start.
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
