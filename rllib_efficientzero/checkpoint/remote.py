"""Checkpoints in a storage such as `s3://`, which cannot rename directories; incomplete ones are recognised as such.

A new checkpoint is uploaded to a staging path beside its place, `manifest.json` last, and only then replaces an older
one. If its writer is interrupted after it deleted the older one, `download` finds the new one at the staging path.
"""

from __future__ import annotations

import pathlib

import pyarrow
import pyarrow.fs
from pyarrow.fs import FileSystem, FileType

from rllib_efficientzero.checkpoint.manifest import MANIFEST, RLLIB_MARK, CheckpointError


def upload(directory: pathlib.Path, filesystem: FileSystem, path: str) -> None:
    """Uploads a checkpoint from this machine; an older one in `path` stays there until the upload is complete.

    Args:
        directory: of the checkpoint; its manifest is deleted.
        filesystem: of `path`.
        path: where to, replacing a checkpoint there; see `check_replaceable`.
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
    """Downloads a checkpoint to this machine, from the staging path if a complete upload has not replaced the older."""
    pyarrow.fs.copy_files(_source(filesystem, path), str(directory), source_filesystem=filesystem)


def check_replaceable(filesystem: FileSystem, path: str) -> None:
    """Refuses a place that holds anything but a checkpoint, as `manifest.check_replaceable` does on this machine.

    Raises:
        CheckpointError: it is a file, or a directory that is neither empty nor a checkpoint.
    """
    kind = filesystem.get_file_info(path).type
    if kind == FileType.File:
        raise CheckpointError(f"{path} is a file: a checkpoint is a directory.")
    if kind == FileType.NotFound or _is_file(filesystem, f"{path}/{RLLIB_MARK}"):
        return
    # If a complete checkpoint is staged, the files in `path` are the rest of an older one that was being deleted.
    if _source(filesystem, path) == path and filesystem.get_file_info(pyarrow.fs.FileSelector(path)):
        raise CheckpointError(
            f"{path} holds something that is no checkpoint, and a checkpoint would take its place: name a new "
            f"directory, such as {path}/checkpoint."
        )


def _staging_path(path: str) -> str:
    place = pathlib.PurePosixPath(path)
    return str(place.with_name(f".{place.name}.saving"))


def _source(filesystem: FileSystem, path: str) -> str:
    """Where the checkpoint is: at the staging path if only that has a manifest, since its writer was interrupted."""
    staging = _staging_path(path)
    is_beside = not _is_file(filesystem, f"{path}/{MANIFEST}") and _is_file(filesystem, f"{staging}/{MANIFEST}")
    return staging if is_beside else path


def _take_place(filesystem: FileSystem, path: str) -> None:
    """Moves the staged checkpoint to its place, deleting an older one there."""
    staging = _staging_path(path)
    if _is_file(filesystem, f"{path}/{MANIFEST}"):
        filesystem.delete_file(f"{path}/{MANIFEST}")  # first: a checkpoint with a manifest counts as complete
    _delete(filesystem, path)
    try:
        filesystem.move(staging, path)
    except (OSError, NotImplementedError, pyarrow.ArrowNotImplementedError):
        # Object storages such as S3 have no directories to move, only names with slashes.
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
