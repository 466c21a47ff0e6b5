"""What `--help` prints, of every verb."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from invoking import rllib

from rllib_efficientzero import __version__
from rllib_efficientzero.cli.main import app


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


@pytest.mark.parametrize(
    "verb", [(), ("train",), ("train", "file"), ("evaluate",), ("example", "run"), ("paper", "list"), ("rollout",)]
)
def test_h_is_help(verb: tuple[str, ...]) -> None:
    assert rllib(*verb, "-h").stdout == rllib(*verb, "--help").stdout
    assert "-h, --help" in rllib(*verb, "-h").stdout


def test_an_example_that_is_named_is_explained_too() -> None:
    """Options that follow its name are those of `train file`, but for this one."""
    assert "Train an example" in rllib("example", "run", "cartpole-ez", "-h").stdout


def test_the_version_is_told() -> None:
    told = rllib("--version")
    assert told.exit_code == 0, told.output
    assert told.stdout == f"rllib_efficientzero {__version__}\n"


def test_h_is_no_other_option() -> None:
    """A verb's own -h, as an old command may have had it, would be shadowed."""

    def options(command: Any) -> list[str]:
        children = getattr(command, "commands", {}).values()
        own = [name for parameter in command.params for name in parameter.opts]
        return [*own, *(name for child in children for name in options(child))]

    assert "-c" in options(typer.main.get_command(app))
    assert "-h" not in options(typer.main.get_command(app))
