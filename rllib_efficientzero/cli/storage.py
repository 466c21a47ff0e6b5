"""Whether results can be written where they are to go."""

from __future__ import annotations

import contextlib
import pathlib
import tempfile

from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.cli.experiment import Experiment


def check_storage(experiment: Experiment) -> None:
    """Makes the experiment's directory and writes into it, as Tune would once Ray runs; leaves nothing behind.

    Raises:
        InputError: neither is possible. Of a URI, only Tune can tell.
    """
    if "://" in str(experiment.path):
        return
    path = pathlib.Path(experiment.path)
    made: list[pathlib.Path] = []
    try:
        made = [directory for directory in (path, *path.parents) if not directory.exists()]
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        message = f"results cannot be written to {path}: {error.strerror or error}"
        raise InputError(message, experiment.place("storage_path")) from error
    finally:
        for directory in made:
            with contextlib.suppress(OSError):
                directory.rmdir()
