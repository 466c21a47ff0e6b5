"""An experiment given by options alone, as the old `rllib train --run PPO --env CartPole-v1` took it."""

from __future__ import annotations

from typing import Any

from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.cli.experiment import Experiment, Overrides, parse_experiment


class _Options:
    """Names the option that a part of the experiment came from."""

    def __call__(self, *path: str | int) -> str:
        return f"--{str(path[0]).replace('_', '-')}" if path else ""


def load_inline_experiment(name: str, run: str | None, given: dict[str, Any], overrides: Overrides) -> Experiment:
    """Makes an experiment from options, and checks it.

    Args:
        name: of the experiment.
        run: the algorithm, as in a file.
        given: further keys of the experiment, each from the option of the same name; None: not given.
        overrides: from the options that `rllib train file` has, too.

    Raises:
        InputError: with the option at fault.
    """
    if run is None:
        raise InputError("name an algorithm (EfficientZero, PPO, ...), or train a file: rllib train file FILE", "--run")
    spec = {"run": run, **{key: value for key, value in given.items() if value is not None}}
    return parse_experiment(name, spec, _Options(), overrides)
