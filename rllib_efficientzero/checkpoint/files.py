"""Writes files and directories atomically: a crash at any moment leaves the previous content in place."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import TypedDict

CHUNK_BYTES = 1 << 20


class FileEntry(TypedDict):
    """A manifest's entry for a file."""

    size: int
    """bytes"""
    sha256: str
    """hexadecimal"""


def write_file(path: pathlib.Path, content: bytes) -> FileEntry:
    """Writes `path` atomically: it gets its final name only once every byte is on the disk."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return FileEntry(size=len(content), sha256=hashlib.sha256(content).hexdigest())


def hash_file(path: pathlib.Path) -> FileEntry:
    """Size and hash of a file's present content."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return FileEntry(size=size, sha256=digest.hexdigest())


def sync(path: pathlib.Path) -> None:
    """Waits until a file's content, or a directory's list of entries, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(source: pathlib.Path, target: pathlib.Path, size: int) -> bool:
    """Makes a hard link to an immutable file, or a copy if the file system has no hard links.

    Args:
        source: the file.
        target: a name not taken yet.
        size: bytes that the file must have.

    Returns:
        Whether it worked; False if the file is missing, is a symbolic link or has another size, or cannot be copied.
    """
    try:
        if source.is_symlink() or source.stat().st_size != size:
            return False
        try:
            os.link(source, target)
        except FileNotFoundError:
            raise
        except OSError:
            # Another file system, or one without hard links.
            shutil.copyfile(source, target)
            sync(target)
    except OSError:
        target.unlink(missing_ok=True)
        return False
    return True


def staging_path(target: pathlib.Path) -> pathlib.Path:
    """Where `staged_directory` writes before `target` appears."""
    return target.with_name(f".{target.name}.saving")


def replaced_path(target: pathlib.Path) -> pathlib.Path:
    """Where `staged_directory` moves an older `target`, for the moment until the new one has its name."""
    return target.with_name(f".{target.name}.replaced")


def replaced_original(replaced: pathlib.Path) -> pathlib.Path:
    """The inverse of `replaced_path`."""
    return replaced.with_name(replaced.name.removeprefix(".").removesuffix(".replaced"))


@contextlib.contextmanager
def staged_directory(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a directory to write into, which becomes `target` when the block ends without an error.

    It replaces an older `target`; after an error, or a crash, the older one is unchanged, though a crash between two
    renames leaves it at `replaced_path`. There must be only one writer of `target` at a time. If `target` is a symbolic
    link, the directory that it leads to is replaced.
    """
    target = target.resolve()
    staging, replaced = staging_path(target), replaced_path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in (staging, replaced):
        if leftover.is_symlink():
            leftover.unlink()
        elif leftover != replaced or target.exists():
            shutil.rmtree(leftover, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        for directory, _, _ in os.walk(staging):
            sync(pathlib.Path(directory))
        if target.is_dir() and any(target.iterdir()):
            os.rename(target, replaced)
        os.rename(staging, target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
