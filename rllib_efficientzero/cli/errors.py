"""What a command ends with: exit codes, and one sentence instead of a traceback when the input is wrong."""

from __future__ import annotations

import signal
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
    """By Ctrl-C."""
    TERMINATED = 143
    """By SIGTERM."""


class Terminated(KeyboardInterrupt):
    """Raised where SIGTERM ends the command at once."""


class InputError(Exception):
    """What the user gave cannot be run; `where` is `file:line` or the option it came from."""

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.message = message
        self.where = where


def _terminate(number: int, frame: object) -> None:
    raise Terminated


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turns wrong input, Ctrl-C and SIGTERM into a message and an exit code; a bug keeps its traceback."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except InputError as error:
        say_error(str(error))
        raise typer.Exit(ExitCode.BAD_INPUT) from None
    except KeyboardInterrupt as error:
        say_error("interrupted")
        raise typer.Exit(ExitCode.TERMINATED if isinstance(error, Terminated) else ExitCode.INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)
