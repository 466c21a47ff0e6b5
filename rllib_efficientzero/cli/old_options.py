"""Options of Ray's own `rllib evaluate` and `rllib rollout` that this command does not need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from rllib_efficientzero.cli.console import say_warning
from rllib_efficientzero.cli.errors import InputError, exit_codes

_INSTEAD = {
    "algo": "the checkpoint says what it is of",
    "steps": "whole episodes are played, as many as --episodes says",
    "render": "--video records the first episode",
    "local_mode": "one process plays",
    "save_info": "--out writes what is known of every episode",
    "use_shelve": "--out writes JSON",
    "track_progress": "every episode is told of when it ends",
}


@dataclass(frozen=True)
class OldEvaluateOptions:
    """The old options: hidden from the help, and answered by a warning."""

    algo: Annotated[str | None, typer.Option("--algo", "--run", "-a", hidden=True)] = None
    steps: Annotated[int | None, typer.Option("--steps", hidden=True)] = None
    config: Annotated[str | None, typer.Option("--config", "-c", hidden=True)] = None
    render: Annotated[bool, typer.Option("--render", hidden=True)] = False
    local_mode: Annotated[bool, typer.Option("--local-mode", hidden=True)] = False
    save_info: Annotated[bool, typer.Option("--save-info", hidden=True)] = False
    use_shelve: Annotated[bool, typer.Option("--use-shelve", hidden=True)] = False
    track_progress: Annotated[bool, typer.Option("--track-progress", hidden=True)] = False

    def warn(self) -> None:
        """Warns of each one that was given, and says what takes its place.

        Raises:
            InputError: `--config` was given, which would have changed what is played.
        """
        if self.config is not None:
            raise InputError("use --env, --env-config and --num-simulations", "--config")
        for name, instead in _INSTEAD.items():
            if getattr(self, name):
                say_warning(f"--{name.replace('_', '-')} is not needed any more: {instead}")


def rollout() -> None:
    """Is now called `rllib evaluate`."""
    with exit_codes():
        raise InputError("use rllib evaluate CHECKPOINT", "rollout")
