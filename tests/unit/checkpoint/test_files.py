"""Directories that are replaced as a whole, at paths of every kind."""

from __future__ import annotations

import os
import pathlib

import pytest

from rllib_efficientzero.checkpoint import CheckpointError
from rllib_efficientzero.checkpoint.files import replaced_path, staged_directory
from rllib_efficientzero.checkpoint.manifest import check_replaceable, recover_replaced


def write(target: pathlib.Path, number: int) -> None:
    with staged_directory(target) as staging:
        (staging / str(number)).touch()


def names(directory: pathlib.Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("kind", ["empty", "full", "nothing"])
def test_a_link_stays_one(tmp_path: pathlib.Path, kind: str) -> None:
    """What it leads to is replaced, as often as it is written to."""
    place, link = tmp_path / "place", tmp_path / "link"
    link.symlink_to(place)
    if kind == "full":
        write(place, 0)
    elif kind == "empty":
        place.mkdir()
    for number in range(1, 4):
        write(link, number)
        assert link.is_symlink()
        assert names(place) == [str(number)]
        assert names(tmp_path) == ["link", "place"]


def test_leftover_links_are_in_nobodys_way(tmp_path: pathlib.Path) -> None:
    """Versions before replaced the link itself, and left it under this name."""
    place, elsewhere = tmp_path / "place", tmp_path / "elsewhere"
    write(elsewhere, 0)
    write(place, 0)
    replaced_path(place).symlink_to(elsewhere)
    write(place, 1)
    assert names(place) == ["1"]
    assert names(elsewhere) == ["0"]
    assert names(tmp_path) == ["elsewhere", "place"]


def test_what_was_being_replaced_is_found_behind_a_link(tmp_path: pathlib.Path) -> None:
    place, link = tmp_path / "place", tmp_path / "link"
    write(replaced_path(place), 0)
    link.symlink_to(place)
    recover_replaced(link)
    assert names(link) == ["0"]


def test_mounted_file_systems_are_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    (tmp_path / "link").symlink_to(mounted)
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(mounted))
    for path in (mounted, tmp_path / "link"):
        with pytest.raises(CheckpointError, match=rf"^{path} is where a file system is mounted.* {path}/checkpoint\.$"):
            check_replaceable(path)
    check_replaceable(mounted / "checkpoint")
