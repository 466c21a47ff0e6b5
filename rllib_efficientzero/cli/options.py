"""Options that several verbs have: declared once, as the fields of a dataclass."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import typer

OPTIONS = "options"


def verbs(**settings: Any) -> typer.Typer:
    """Makes a typer application with plain-text help: as rich markup, `[serve]` would be a style and not be shown."""
    help_names = {"help_option_names": ["-h", "--help"]}
    return typer.Typer(no_args_is_help=True, rich_markup_mode=None, context_settings=help_names, **settings)


def takes_options(options_class: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a command: the fields of a dataclass become its options, which it gets as the argument `options`.

    Args:
        options_class: a dataclass whose fields are annotated as typer wants it, each with a default.
    """
    types = typing.get_type_hints(options_class, include_extras=True)
    fields = [_parameter(field.name, field.default, types[field.name]) for field in dataclasses.fields(options_class)]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        types = typing.get_type_hints(command, include_extras=True)
        own = [
            _parameter(parameter.name, parameter.default, types[parameter.name])
            for parameter in inspect.signature(command).parameters.values()
            if parameter.name != OPTIONS
        ]

        @functools.wraps(command)
        def flat(**given: Any) -> None:
            options = options_class(**{field.name: given.pop(field.name) for field in fields})
            command(**given, **{OPTIONS: options})

        # Typer reads these instead of the command's own signature.
        flat.__signature__ = inspect.Signature([*own, *fields])  # type: ignore[attr-defined]
        flat.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *fields]}
        return flat

    return decorate


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
