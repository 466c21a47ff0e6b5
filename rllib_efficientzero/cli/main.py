"""The `rllib` command. Importing this module must stay cheap: `rllib --help` answers before ray could be imported."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from rllib_efficientzero import __version__
from rllib_efficientzero.cli import (
    doctor,
    env_check,
    evaluate,
    example,
    export,
    old_options,
    paper,
    plot,
    serve,
    train,
    train_decoder,
)
from rllib_efficientzero.cli.console import say
from rllib_efficientzero.cli.options import verbs

app = verbs(
    name="rllib",
    # A bug's traceback is for us to read; rich's version of it hides the chain and prints locals.
    pretty_exceptions_enable=False,
    help="Train RLlib's algorithms, and EfficientZero, from experiment files, and look at what they learned.",
)
app.add_typer(train.app, name="train")
app.command("check-env")(env_check.check_env_command)
app.command("evaluate")(evaluate.evaluate)
app.add_typer(example.app, name="example")
app.command("export")(export.export)
app.command("plot")(plot.plot)
app.add_typer(paper.app, name="paper")
app.command("play")(serve.play)
app.command("train-decoder")(train_decoder.train_decoder_command)
app.command("serve")(serve.serve)
app.command("doctor")(doctor.doctor)
app.command("rollout", hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    old_options.rollout
)


def _print_version(asked: bool) -> None:
    if asked:
        say(f"rllib_efficientzero {__version__}")
        raise typer.Exit


@app.callback()
def rllib(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train RLlib's algorithms, and EfficientZero, from experiment files, and look at what they learned."""


def main() -> None:
    """Entry point of the console scripts `rllib` and `rllib-efficientzero`."""
    # So that `imports: [my_envs]` and dotted paths find modules beside the user, as under `python -m`.
    sys.path.insert(0, os.getcwd())
    app()
