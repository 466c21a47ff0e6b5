"""What `--help` prints, of every verb."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from rllib_efficientzero.cli.main import app


def rllib(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.mark.parametrize(
    ("verb", "sentence"),
    [
        ("play", "Needs the extra [serve]; neither the checkpoint nor the decoder"),
        ("serve", "Needs the extra [serve-ray], with --local only [serve]; the checkpoint"),
        ("export", "(needs the extra [onnx])"),
        ("evaluate", "FILE of --tree ends in .html or .svg"),
    ],
)
def test_help_is_no_markup(verb: str, sentence: str) -> None:
    shown = rllib(verb, "--help")
    assert shown.exit_code == 0, shown.output
    assert sentence in " ".join(shown.stdout.split())
