"""Checks, before long work, that the files to be written at its end can be written."""

from __future__ import annotations

import errno
import os
import pathlib

from rllib_efficientzero.cli.errors import InputError


def check_writable(file: pathlib.Path | None, option: str) -> None:
    """Makes the file's directory and checks that the file can be written; a full disk, say, still shows only later.

    Raises:
        InputError: it cannot be written there.
    """
    if file is None:
        return
    where = f"{option} {file}"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError("cannot be written: a file stands where its directory would", where) from error
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where) from error
    if file.is_dir():
        raise InputError("cannot be written: it is a directory", where)
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise InputError(f"cannot be written: {os.strerror(errno.EACCES)}", where)
