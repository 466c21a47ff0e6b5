"""`rllib example`: the tuned examples that come with the package."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from rllib_efficientzero.cli.console import say
from rllib_efficientzero.cli.errors import InputError, exit_codes
from rllib_efficientzero.cli.options import verbs
from rllib_efficientzero.config_schema import nearest

app = verbs(help="List, show and run the tuned examples.")


@app.callback()
def example() -> None:
    """List, show and run the tuned examples."""


@app.command("list")
def list_examples(
    pattern: Annotated[
        str, typer.Option("--filter", "-f", help="Only examples with this in their name or description.")
    ] = "",
) -> None:
    """Names of the examples, and what each is."""
    with exit_codes():
        found = {name: _first_comment(file) for name, file in _examples().items()}
        shown = {name: text for name, text in found.items() if pattern.lower() in f"{name} {text}".lower()}
        if not shown:
            raise InputError(f"no example matches {pattern!r}; there are {', '.join(found)}", "--filter")
        width = max(map(len, shown))
        for name, text in shown.items():
            say(f"{name:<{width}}  {text}")


@app.command("get")
def get_example(name: Annotated[str, typer.Argument(help="Of the example.")]) -> None:
    """Print an example's file; `rllib example get pong-ez > my.yaml` begins an experiment of your own."""
    with exit_codes():
        typer.echo(find_example(name).read_text(encoding="utf-8"), nl=False)


@app.command("run", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run_example(context: typer.Context, name: Annotated[str, typer.Argument(help="Of the example.")]) -> None:
    """Train an example; options are those of `rllib train file`."""
    with exit_codes():
        file = find_example(name)
    from rllib_efficientzero.cli import train

    typer.main.get_command(train.app).main(args=["file", str(file), *context.args], prog_name="rllib train")


def find_example(name: str) -> pathlib.Path:
    """The file of an example.

    Raises:
        InputError: there is none of that name.
    """
    examples = _examples()
    if name.removesuffix(".yaml") in examples:
        return examples[name.removesuffix(".yaml")]
    near = nearest(name, examples)
    hint = f"did you mean {near!r}?" if near else f"there are {', '.join(examples)}"
    raise InputError(f"unknown example {name!r}; {hint}")


def _examples() -> dict[str, pathlib.Path]:
    """Name -> file: beside the package in a checkout, inside it where it was installed."""
    package = pathlib.Path(__file__).parents[1]
    for directory in (package / "tuned_examples", package.parent / "tuned_examples"):
        if directory.is_dir():
            return {file.stem: file for file in sorted(directory.glob("*.yaml"), key=lambda file: file.stem)}
    raise InputError("the examples were not installed with this package")


def _first_comment(file: pathlib.Path) -> str:
    """Returns the first sentence of the comment at the top of the file."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines).partition(". ")[0].rstrip(".")
