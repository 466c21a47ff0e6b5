"""What a command ends with: exit codes, and one sentence instead of a traceback when the input is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import typer

from rllib_efficientzero.cli.console import say_error


class ExitCode(IntEnum):
    """Exit codes of every verb."""

    DONE = 0
    TRIAL_ERRORED = 1
    BAD_INPUT = 2
    INTERRUPTED = 130


class InputError(Exception):
    """What the user gave cannot be run; `where` is `file:line` or the option it came from."""

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.message = message
        self.where = where


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turns wrong input and Ctrl-C into a message and an exit code; anything else is a bug and keeps its traceback."""
    try:
        yield
    except InputError as error:
        say_error(str(error))
        raise typer.Exit(ExitCode.BAD_INPUT) from None
    except KeyboardInterrupt:
        say_error("interrupted")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
