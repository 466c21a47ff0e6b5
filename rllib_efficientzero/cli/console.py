"""The two rich consoles of the command line: results go to stdout, warnings and errors to stderr."""

from __future__ import annotations

import time

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def say(text: str, style: str = "") -> None:
    """One line to stdout, never wrapped, so that paths can be copied and logs searched."""
    out.print(Text(text, style=style), soft_wrap=True)


def say_warning(text: str) -> None:
    """One warning line to stderr."""
    err.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)


def say_error(text: str) -> None:
    """One error line to stderr."""
    err.print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)


class StatusLine:
    """A status line on stderr that is redrawn in place; prints nothing if stderr is no terminal.

    Rich's own live display is not used: it would print stdout's lines to stderr, where a pipe does not see them.
    """

    def __init__(self, seconds_between: float = 0.2) -> None:
        self._seconds_between = seconds_between
        self._shown_at = -seconds_between

    def show(self, text: str) -> None:
        """Replaces the text on the line, unless that was drawn less than `seconds_between` ago."""
        now = time.monotonic()
        if err.is_interactive and now - self._shown_at >= self._seconds_between:
            self.clear()
            err.print(Text(text, style="dim"), end="", overflow="crop", no_wrap=True)
            self._shown_at = now

    def clear(self) -> None:
        """Erases the line; must be called before any other line is printed."""
        err.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))
