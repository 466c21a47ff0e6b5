"""Loggers that get results in addition to the trial's own files: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.config_schema import ConfigError, WrongTypeError, check_known_keys, nearest, normalise_value

if TYPE_CHECKING:
    from ray.tune import Callback


@dataclass(frozen=True)
class Kind:
    """A kind of logger."""

    package: str
    callback: str
    """Dotted path of Tune's class."""
    experiment_key: str | None
    """Setting whose default is the experiment's name; None if there is no such setting."""
    types: dict[str, str]
    """Setting -> its type; settings are arguments of Tune's class."""


LOGGERS = {
    "tensorboard": Kind("tensorboardX", "ray.tune.logger.TBXLoggerCallback", None, {}),
    "wandb": Kind(
        "wandb",
        "ray.air.integrations.wandb.WandbLoggerCallback",
        "project",
        {
            **dict.fromkeys(("project", "group", "name", "entity", "notes", "job_type", "mode", "dir"), "str"),
            **dict.fromkeys(("api_key", "api_key_file"), "str"),
            **dict.fromkeys(("tags", "excludes"), "list"),
            **dict.fromkeys(("log_config", "upload_checkpoints"), "bool"),
        },
    ),
    "mlflow": Kind(
        "mlflow",
        "ray.air.integrations.mlflow.MLflowLoggerCallback",
        "experiment_name",
        {
            **dict.fromkeys(("tracking_uri", "registry_uri", "experiment_name"), "str"),
            "tags": "dict",
            **dict.fromkeys(("save_artifact", "log_params_on_trial_end"), "bool"),
        },
    ),
}


WANDB_WITHOUT_KEY = ("offline", "disabled")


@dataclass
class LoggerSettings:
    """One logger of an experiment."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


def resolve_loggers(given: list[Any], experiment: str) -> list[LoggerSettings]:
    """Checks a list such as `[tensorboard, {wandb: {project: x}}]`, and returns its loggers; needs no ray.

    Args:
        given: names, or mappings of a name to its settings.
        experiment: its name, the default for a logger's project.

    Raises:
        ConfigError: with the path of what is wrong; also if a logger's package is not installed.
    """
    found: dict[str, LoggerSettings] = {}
    for index, entry in enumerate(given):
        try:
            logger = _resolve(entry, experiment)
        except ConfigError as error:
            error.path = (index, *error.path)
            raise
        found[logger.name] = logger
    return list(found.values())


def _resolve(entry: Any, experiment: str) -> LoggerSettings:
    if isinstance(entry, Mapping) and len(entry) == 1:
        ((name, settings),) = entry.items()
    else:
        name, settings = entry, {}
    if not isinstance(name, str) or not isinstance(settings, Mapping | None):
        raise WrongTypeError("'loggers' takes names, or {name: {setting: value}}")
    if name not in LOGGERS:
        near = nearest(name, LOGGERS)
        hint = f"did you mean {near!r}?" if near else f"there are {', '.join(LOGGERS)}"
        raise WrongTypeError(f"unknown logger {name!r}; {hint}")
    kind = LOGGERS[name]
    settings = settings or {}
    check_known_keys(settings, kind.types, f"logger {name!r}", private=False)
    typed = {key: normalise_value(key, value, kind.types[key]) for key, value in settings.items()}
    if importlib.util.find_spec(kind.package) is None:
        raise WrongTypeError(f"logger {name!r} needs a package that is not installed: pip install {kind.package}")
    if kind.experiment_key:
        typed.setdefault(kind.experiment_key, experiment)
    return LoggerSettings(name, typed)


def make_loggers(loggers: list[LoggerSettings], where: str, results: str | pathlib.Path) -> list[Callback]:
    """Makes Tune's callbacks, and sets each one up to see that it reaches what it logs to; imports ray.

    Args:
        loggers: of one experiment.
        where: place of the loggers, for messages.
        results: the experiment's directory, or its URI.

    Raises:
        InputError: one cannot be used: it has no key, or nothing answers at its address.
    """
    made = []
    for logger in loggers:
        settings = _of_wandb(logger.settings, str(results)) if logger.name == "wandb" else logger.settings
        module, _, name = LOGGERS[logger.name].callback.rpartition(".")
        try:
            callback = getattr(importlib.import_module(module), name)(**settings)
            # Tune will call it again, where a failure would end in a traceback.
            callback.setup()
        except Exception as error:
            # Whatever a foreign package raises.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"logger {logger.name!r} cannot be used: {reason}", where) from error
        made.append(callback)
    return made


def _of_wandb(settings: dict[str, Any], results: str) -> dict[str, Any]:
    """Returns settings with a directory for data that is not sent yet, or never; moves the key to the environment.

    By default the directory would be one of Ray's temporary ones, and its copy among the results would lack the end of
    the run. The key must leave the settings, since Tune saves its callbacks among the results with all they hold.
    """
    if "api_key" in settings:
        settings = dict(settings)
        os.environ["WANDB_API_KEY"] = settings.pop("api_key")
    if settings.get("mode") in WANDB_WITHOUT_KEY:
        # Tune asks for a key unless the environment variable has this mode.
        os.environ["WANDB_MODE"] = settings["mode"]
    directory = settings.get("dir", results)
    if "://" in directory:
        return settings
    path = pathlib.Path(directory).expanduser().absolute()
    path.mkdir(parents=True, exist_ok=True)
    return settings | {"dir": str(path)}
