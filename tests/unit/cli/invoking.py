"""The command, called in this process."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from rllib_efficientzero.cli.main import app


def rllib(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
