"""A checkpoint in a storage is whole, whenever the writer of a new one in its place is interrupted."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any

import pyarrow.fs
import pytest

from rllib_efficientzero.checkpoint import CheckpointError, remote
from rllib_efficientzero.checkpoint.manifest import RLLIB_MARK, read_manifest, verify, write_manifest


class Storage(pyarrow.fs.SubTreeFileSystem):
    """A storage whose connection is lost after so many files were written or deleted."""

    def __init__(self, directory: pathlib.Path, *, can_move: bool) -> None:
        super().__init__(str(directory), pyarrow.fs.LocalFileSystem())
        self.can_move = can_move
        self.files_left: int | None = None

    def count(self) -> None:
        if self.files_left is not None:
            self.files_left -= 1
            if self.files_left < 0:
                raise OSError("connection lost")

    def move(self, source: str, target: str) -> None:
        self.count()
        if not self.can_move:
            raise NotImplementedError
        super().move(source, target)

    def copy_file(self, source: str, target: str) -> None:
        self.count()
        super().copy_file(source, target)

    def delete_file(self, path: str) -> None:
        self.count()
        super().delete_file(path)

    def delete_dir(self, path: str) -> None:
        for info in self.get_file_info(pyarrow.fs.FileSelector(path, recursive=True)):
            if info.type == pyarrow.fs.FileType.File:
                self.delete_file(info.path)
        super().delete_dir(path)

    def open_output_stream(self, path: str, **kwargs: Any) -> Any:
        self.count()
        return super().open_output_stream(path, **kwargs)


@pytest.fixture(autouse=True)
def files_are_copied_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As over a connection that may be lost between them."""
    copy_files = pyarrow.fs.copy_files

    def copy(source: str, target: str, *, destination_filesystem: Any = None, **kwargs: Any) -> None:
        if destination_filesystem is None:
            copy_files(source, target, **kwargs)
            return
        for file in sorted(path for path in pathlib.Path(source).rglob("*") if path.is_file()):
            place = f"{target}/{file.relative_to(source).as_posix()}"
            destination_filesystem.create_dir(place.rpartition("/")[0], recursive=True)
            with destination_filesystem.open_output_stream(place) as stream:
                stream.write(file.read_bytes())

    monkeypatch.setattr(pyarrow.fs, "copy_files", copy)


def checkpoint(directory: pathlib.Path, number: int) -> pathlib.Path:
    """What a checkpoint is to a storage; every number has a file that the others have not."""
    (directory / "replay").mkdir(parents=True)
    (directory / RLLIB_MARK).write_text("{}")
    (directory / "state.pkl").write_text(f"state {number}")
    (directory / "replay" / f"segment-{number}").write_text(f"segment {number}")
    write_manifest(directory, {}, counters={"number": number})
    return directory


def number_of(storage: Storage, directory: pathlib.Path) -> int:
    """Of the checkpoint that is found, which is whole and has nothing else in it."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    remote.download(storage, "trial/checkpoint", directory)
    number: int = verify(directory)["counters"]["number"]
    files = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert files == {*read_manifest(directory)["files"], "manifest.json"}
    return number


@pytest.mark.parametrize("can_move", [True, False])
def test_interrupted_anywhere(tmp_path: pathlib.Path, can_move: bool) -> None:
    (tmp_path / "storage").mkdir()
    storage = Storage(tmp_path / "storage", can_move=can_move)
    number, found = 0, []
    remote.upload(checkpoint(tmp_path / "0", 0), storage, "trial/checkpoint")
    for files in range(100):
        number += 1
        storage.files_left = files
        before = number_of(storage, tmp_path / "found")
        try:
            remote.upload(checkpoint(tmp_path / str(number), number), storage, "trial/checkpoint")
        except OSError:
            storage.files_left = None
            assert number_of(storage, tmp_path / "found") in (before, number)
            found.append(number_of(storage, tmp_path / "found") == number)
        else:
            break
    assert {True, False} == set(found), "it should be interrupted before and after the new one is whole"
    storage.files_left = None
    assert number_of(storage, tmp_path / "found") == number
    assert [path.name for path in (tmp_path / "storage" / "trial").iterdir()] == ["checkpoint"]


def test_nothing_else_is_replaced(tmp_path: pathlib.Path) -> None:
    storage = Storage(tmp_path, can_move=True)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("all of it")
    for path in ("work", "work/thesis.tex"):
        with pytest.raises(CheckpointError, match=f"^{path} (holds something that is no checkpoint|is a file)"):
            remote.check_replaceable(storage, path)
    (tmp_path / "empty").mkdir()
    checkpoint(tmp_path / "older", 1)
    for path in ("new", "empty", "older"):
        remote.check_replaceable(storage, path)
