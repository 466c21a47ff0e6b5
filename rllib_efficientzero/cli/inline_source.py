"""An experiment of the command line alone, as the old `rllib train --run PPO --env CartPole-v1` took it."""

from __future__ import annotations

from typing import Any

from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.cli.experiment import Experiment, Overrides, parse_experiment


class _Options:
    """Names the option that a part of the experiment came from."""

    def __call__(self, *path: str | int) -> str:
        return f"--{str(path[0]).replace('_', '-')}" if path else ""


def load_inline_experiment(name: str, run: str | None, given: dict[str, Any], overrides: Overrides) -> Experiment:
    """The checked experiment.

    Args:
        name: of the experiment.
        run: the algorithm, as in a file.
        given: further keys of an experiment, whose options are called like them; None: not given.
        overrides: what the options shared with files say.

    Raises:
        InputError: with the option at fault.
    """
    if run is None:
        raise InputError("name an algorithm (EfficientZero, PPO, ...), or train a file: rllib train file FILE", "--run")
    spec = {"run": run, **{key: value for key, value in given.items() if value is not None}}
    return parse_experiment(name, spec, _Options(), overrides)
