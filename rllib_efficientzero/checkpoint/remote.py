"""Checkpoints in a storage such as `s3://`, which has no renaming of directories: whole, or not taken for one.

A new checkpoint is uploaded beside its place, `manifest.json` last, and only then takes the place of an older one. Who
is interrupted in between leaves the new one beside an emptied place, where `download` finds it.
"""

from __future__ import annotations

import pathlib

import pyarrow
import pyarrow.fs
from pyarrow.fs import FileSystem, FileType

from rllib_efficientzero.checkpoint.manifest import MANIFEST, RLLIB_MARK, CheckpointError


def upload(directory: pathlib.Path, filesystem: FileSystem, path: str) -> None:
    """Copies a checkpoint from this machine; what was in `path` before stays there until the new one is whole.

    Args:
        directory: of the checkpoint; its manifest is taken out.
        filesystem: of `path`.
        path: where to, replacing a checkpoint there, see `check_replaceable`.
    """
    staging = _staging_path(path)
    if _source(filesystem, path) == staging:
        _take_place(filesystem, path)
    _delete(filesystem, staging)
    manifest = directory / MANIFEST
    content = manifest.read_bytes()
    manifest.unlink()
    filesystem.create_dir(staging, recursive=True)
    pyarrow.fs.copy_files(str(directory), staging, destination_filesystem=filesystem)
    with filesystem.open_output_stream(f"{staging}/{MANIFEST}") as stream:
        stream.write(content)
    _take_place(filesystem, path)


def download(filesystem: FileSystem, path: str, directory: pathlib.Path) -> None:
    """Copies a checkpoint to this machine; one whose upload was interrupted when it was whole, too."""
    pyarrow.fs.copy_files(_source(filesystem, path), str(directory), source_filesystem=filesystem)


def check_replaceable(filesystem: FileSystem, path: str) -> None:
    """Refuses to write a checkpoint where something else is, as `manifest.check_replaceable` does on this machine.

    Raises:
        CheckpointError: it is a file, or a directory that holds anything and is no checkpoint.
    """
    kind = filesystem.get_file_info(path).type
    if kind == FileType.File:
        raise CheckpointError(f"{path} is a file: a checkpoint is a directory.")
    if kind == FileType.NotFound or _is_file(filesystem, f"{path}/{RLLIB_MARK}"):
        return
    # What an interrupted writer left of an older one while the new one is whole is no loss either.
    if _source(filesystem, path) == path and filesystem.get_file_info(pyarrow.fs.FileSelector(path)):
        raise CheckpointError(
            f"{path} holds something that is no checkpoint, and a checkpoint would take its place: name a new "
            f"directory, such as {path}/checkpoint."
        )


def _staging_path(path: str) -> str:
    place = pathlib.PurePosixPath(path)
    return str(place.with_name(f".{place.name}.saving"))


def _source(filesystem: FileSystem, path: str) -> str:
    """Where the checkpoint is: beside its place, if its writer was interrupted when it had emptied that."""
    staging = _staging_path(path)
    is_beside = not _is_file(filesystem, f"{path}/{MANIFEST}") and _is_file(filesystem, f"{staging}/{MANIFEST}")
    return staging if is_beside else path


def _take_place(filesystem: FileSystem, path: str) -> None:
    """Puts what is uploaded beside its place into it."""
    staging = _staging_path(path)
    if _is_file(filesystem, f"{path}/{MANIFEST}"):
        filesystem.delete_file(f"{path}/{MANIFEST}")  # first: what has one is taken for whole
    _delete(filesystem, path)
    try:
        filesystem.move(staging, path)
    except (OSError, NotImplementedError, pyarrow.ArrowNotImplementedError):
        # S3 and its like have names with slashes, no directories.
        _copy(filesystem, staging, path)
        _delete(filesystem, staging)


def _copy(filesystem: FileSystem, source: str, target: str) -> None:
    """Copies a checkpoint within a storage, the manifest last."""
    selector = pyarrow.fs.FileSelector(source, recursive=True)
    files = [info.path for info in filesystem.get_file_info(selector) if info.type == FileType.File]
    for file in sorted(files, key=lambda file: file == f"{source}/{MANIFEST}"):
        copy = f"{target}/{pathlib.PurePosixPath(file).relative_to(source)}"
        filesystem.create_dir(str(pathlib.PurePosixPath(copy).parent), recursive=True)
        filesystem.copy_file(file, copy)


def _delete(filesystem: FileSystem, path: str) -> None:
    if filesystem.get_file_info(path).type == FileType.Directory:
        filesystem.delete_dir(path)


def _is_file(filesystem: FileSystem, path: str) -> bool:
    return bool(filesystem.get_file_info(path).type == FileType.File)
