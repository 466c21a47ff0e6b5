"""The two rich consoles of the command line: results go to stdout, warnings and errors to stderr."""

from __future__ import annotations

from rich.console import Console
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
