"""Python experiment files, as the old command took them: a module-level `config` and, optionally, `stop`."""

from __future__ import annotations

import pathlib
import runpy
from typing import Any

from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.cli.experiment import Experiment, Overrides
from rllib_efficientzero.cli.loggers import resolve_loggers
from rllib_efficientzero.cli.overrides import merge_deep
from rllib_efficientzero.cli.search_settings import resolve_search
from rllib_efficientzero.cli.stopping import resolve_stop
from rllib_efficientzero.cli.yaml_source import read_text
from rllib_efficientzero.config_schema import ConfigError, resolve_config


def load_python_experiment(file: pathlib.Path, overrides: Overrides) -> Experiment:
    """Runs the file and takes its `config` (an `AlgorithmConfig`) and `stop`; the name is the file's.

    Raises:
        InputError: The file has no such `config`, or an override does not fit.
    """
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    from rllib_efficientzero.known_keys import schema_of

    read_text(file)
    values = runpy.run_path(str(file))
    config = values.get("config")
    if not isinstance(config, AlgorithmConfig) or config.algo_class is None:
        raise InputError("a Python file needs a module-level `config = SomeAlgorithmConfig()...`", str(file))
    given: dict[str, Any] = {**overrides.config}
    if overrides.env is not None:
        given["env"] = overrides.env
    if overrides.seed is not None:
        given["seed"] = overrides.seed
    if overrides.local_mode:
        given |= {"num_env_runners": 0, "num_learners": 0, "evaluation_num_env_runners": 0}
    searched = {} if overrides.scheduler is None else {"scheduler": overrides.scheduler}
    warnings: list[str] = []
    try:
        schema = schema_of(config)
        over = resolve_config(given, schema, "--config")
        stop, told = resolve_stop({**values.get("stop", {}), **overrides.stop})
        search = resolve_search(searched, schema, warnings)
        loggers = resolve_loggers(overrides.loggers, file.stem)
    except ConfigError as error:
        raise InputError(error.message, str(file)) from error
    return Experiment(
        name=file.stem,
        run=config.algo_class,
        config=merge_deep(config.to_dict(), over.config),
        stop=stop,
        storage_path=overrides.storage_path or "~/ray_results",
        checkpoint={"checkpoint_at_end": True, **overrides.checkpoint},
        search=search,
        loggers=loggers,
        warnings=over.warnings + told + warnings,
        where=str(file),
        places={"storage_path": "--storage-path"} if overrides.storage_path else {},
    )
