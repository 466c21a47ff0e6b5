"""`--dry-run`: everything a run would use, printed; nothing is started."""

from __future__ import annotations

from typing import Any

import yaml

from rllib_efficientzero.cli.algorithms import Prepared, total_resources
from rllib_efficientzero.cli.announce import announce, protocol
from rllib_efficientzero.cli.console import say
from rllib_efficientzero.cli.settings import plain, settings_of
from rllib_efficientzero.search_space import has_search_space


def print_plan(prepared: Prepared, all_keys: bool = False) -> None:
    """The resolved experiment: stop criteria, checkpoints, config, resources, protocol and notices."""
    experiment = prepared.experiment
    say(f"# {experiment.name}: {prepared.algorithm.__name__}, not started (--dry-run)", "bold")
    plan: dict[str, Any] = {
        "run": f"{prepared.algorithm.__module__}.{prepared.algorithm.__name__}",
        "results": str(experiment.path),
        "stop": experiment.stop,
        "checkpoint_config": experiment.checkpoint,
        "num_samples": experiment.num_samples,
        "max_concurrent": experiment.search.max_concurrent,
        "scheduler": {"name": experiment.search.scheduler, **experiment.search.scheduler_settings},
        "metric": f"{experiment.search.mode} {experiment.search.metric}",
        "loggers": [logger.name for logger in experiment.loggers],
        "max_failures": experiment.max_failures,
        "time_budget_s": experiment.time_budget_s,
        "restore": experiment.restore,
        "search_space": {key: value for key, value in prepared.param_space.items() if has_search_space(value)},
        "resources_per_trial": {"total": total_resources(prepared.resources), "bundles": prepared.resources},
        "protocol": protocol(prepared.config),
        "config": _settings(prepared, all_keys),
    }
    plan = {key: value for key, value in plan.items() if value not in (None, {}, [])}
    say(yaml.safe_dump({experiment.name: plain(plan)}, sort_keys=False, width=120, allow_unicode=True).rstrip())
    for notice in announce(prepared.config):
        say(f"# {notice}")


def _settings(prepared: Prepared, all_keys: bool) -> dict[str, Any]:
    """The first trial's config: what the algorithm or the user changed from RLlib's base defaults, or all of it."""
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    base = {} if all_keys else settings_of(AlgorithmConfig())
    given = {key.removeprefix("_") for key in prepared.param_space}
    return {
        key: value
        for key, value in sorted(settings_of(prepared.config).items())
        if key in given or key not in base or base[key] != value
    }
