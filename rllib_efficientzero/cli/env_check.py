"""`rllib check-env ENV`, and the same examination before EfficientZero trains."""

from __future__ import annotations

import functools
import importlib
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rllib_efficientzero.cli.console import say, say_error, say_warning
from rllib_efficientzero.cli.environments import find_problem
from rllib_efficientzero.cli.errors import ExitCode, InputError, exit_codes
from rllib_efficientzero.cli.overrides import parse_json_option
from rllib_efficientzero.env.dotted import call_maker, import_maker, is_dotted_path
from rllib_efficientzero.search_space import LISTS, has_search_space, is_search_space

if TYPE_CHECKING:
    from rllib_efficientzero.cli.experiment import Experiment
    from rllib_efficientzero.env.trial_play import Examination, Finding

FINDINGS = ExitCode.TRIAL_ERRORED
STEPS_BEFORE_TRAINING, SECONDS_BEFORE_TRAINING = 500, 0.5


def check_env_command(
    env: Annotated[
        str, typer.Argument(help="A gymnasium id (module:Name-v0), dmc/TASK, or the dotted path of a class.")
    ],
    env_config: Annotated[
        str, typer.Option("--env-config", metavar="JSON", help="What the environment is made with.")
    ] = "{}",
    imports: Annotated[
        list[str] | None, typer.Option("--import", metavar="MODULE", help="Imported first; may register environments.")
    ] = None,
    support_size: Annotated[
        int, typer.Option(min=1, help="The networks' support_size, which rewards are compared with.")
    ] = 300,
    seconds: Annotated[float, typer.Option(min=0.1, help="Time to play, at most.")] = 1.0,
) -> None:
    """Play ENV for a moment with random legal actions; say what should be changed before EfficientZero trains on it.

    Exit codes: 0 nothing to say; 1 findings; 2 wrong input, or no such environment.
    """
    from rllib_efficientzero.env.diagnosis import examine

    with exit_codes():
        settings = parse_json_option(env_config, "--env-config")
        for module in imports or []:
            _import(module, "--import")
        make = _maker(env, settings)
        begun = time.perf_counter()
        examination = examine(make, support_size=support_size, seconds=seconds, has_time_limit=_is_ours(env))
        _print(env, examination, time.perf_counter() - begun - examination.env_seconds)
    raise typer.Exit(FINDINGS if examination.findings else ExitCode.DONE)


def check_env(experiment: Experiment) -> None:
    """Raises `InputError` if gymnasium does not know the environment, or if EfficientZero cannot train on it.

    Dotted paths, and any name if the experiment has `imports:`, which may register it with Tune, are looked up once ray
    is imported (`algorithms._resolve_env`).
    """
    env = experiment.config.get("env")
    candidates = [env]
    if isinstance(env, dict) and is_search_space(env):
        ((kind, candidates),) = env.items()
        if kind not in LISTS or not isinstance(candidates, list):
            raise InputError(
                "'env' can be searched by 'grid_search' and 'choice', with a list", experiment.place("env")
            )
    for candidate in candidates:
        if not isinstance(candidate, str):
            if candidate is None:
                continue
            raise InputError(f"'env' must be a name, not {candidate!r}", experiment.place("env"))
        if not is_dotted_path(candidate) and not experiment.imports:
            problem = find_problem(candidate)
            if problem:
                raise InputError(problem, experiment.place("env"))
            env_config = experiment.config.get("env_config") or {}
            if experiment.run == "EfficientZero" and not has_search_space(env_config):
                check_before_training(experiment, candidate, gymnasium_maker(candidate, env_config))


def check_before_training(experiment: Experiment, env: Any, make: Callable[[], Any]) -> None:
    """Plays the environment that an experiment trains on; adds its spaces, and warnings, to the experiment's.

    An error in play is only a warning if the config tolerates it (`on_bad_env_step: drop_episode`,
    `restart_failed_sub_environments`).

    Raises:
        InputError: it cannot be trained on.
    """
    from rllib_efficientzero.env.diagnosis import examine

    config = experiment.config
    vectorize = str(config.get("gym_env_vectorize_mode", "")).lower()
    if "vector_entry_point" in vectorize and not (isinstance(env, str) and _is_ours(env)):
        return  # It makes vector environments, which are only checked while they are stepped.
    sizes = config.get("_model_config")
    support_size = sizes.get("support_size", 300) if isinstance(sizes, Mapping) else 300
    examination = examine(
        make,
        support_size=support_size if isinstance(support_size, int) and support_size > 0 else 300,
        has_time_limit=isinstance(env, str) and _is_ours(env),
        representation=str(config.get("action_representation", "auto")),
        max_steps=STEPS_BEFORE_TRAINING,
        seconds=SECONDS_BEFORE_TRAINING,
    )
    if examination.spaces is not None:
        experiment.spaces[env] = examination.spaces
    lives_with_it = config.get("on_bad_env_step") == "drop_episode" or config.get("restart_failed_sub_environments")
    for finding in examination.findings:
        if finding.is_error and not (finding.in_play and lives_with_it):
            raise InputError(f"the environment {env!r} cannot be trained on: {finding}", experiment.place("env"))
        experiment.warnings.append(f"the environment {env!r}: {finding}")


def gymnasium_maker(env: str, env_config: Mapping[str, Any]) -> Callable[[], Any]:
    """Returns a function that makes an environment of gymnasium's or ours, without gymnasium's wordy checker."""
    import gymnasium

    from rllib_efficientzero.env.named import named_maker

    make = named_maker(env)
    if make is not None:
        return functools.partial(make, env_config)
    return functools.partial(gymnasium.make, env, disable_env_checker=True, **env_config)


def _is_ours(env: str) -> bool:
    from rllib_efficientzero.env.named import named_maker

    return named_maker(env) is not None


def _import(module: str, where: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"cannot import {module!r}: {error}", where) from error


def _maker(env: str, env_config: dict[str, Any]) -> Callable[[], Any]:
    """Returns a function that makes the environment; raises InputError if there is no such environment."""
    creator = _registered_with_tune(env)
    if creator is not None:
        return functools.partial(call_maker, creator, env_config)
    if is_dotted_path(env):
        try:
            return functools.partial(call_maker, import_maker(env), env_config)
        except ImportError as error:
            raise InputError(f"cannot import {env!r}: {error}", "ENV") from error
    problem = find_problem(env)
    if problem:
        raise InputError(problem, "ENV")
    return gymnasium_maker(env, env_config)


def _registered_with_tune(env: str) -> Any:
    # Ray, which takes seconds, is not imported here: unless it already was, nothing is registered with it.
    registry = sys.modules.get("ray.tune.registry")
    if registry is None or not registry._global_registry.contains(registry.ENV_CREATOR, env):
        return None
    return registry._global_registry.get(registry.ENV_CREATOR, env)


def _print(env: str, examination: Examination, own_seconds: float) -> None:
    if examination.actions:
        say(f"{env}: observations are {examination.observations}; {examination.actions}")
    if examination.steps:
        say(f"  played   {_count(examination.steps, 'step')}, {_count(len(examination.returns), 'episode')} to the end")
        say(f"  rewards  {_range(examination.rewards)}; returns {_range(examination.returns)}")
        say(f"  speed    {examination.steps_per_second:,.0f} steps/s alone; checked in {own_seconds:.1f} s more")
    for finding in examination.findings:
        _print_finding(finding)
    say(_count(len(examination.findings), "finding") if examination.findings else "fine: nothing to be said against it")


def _print_finding(finding: Finding) -> None:
    (say_error if finding.is_error else say_warning)(str(finding))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _range(values: list[float]) -> str:
    low, high = min(values, default=math.nan), max(values, default=math.nan)
    if math.isnan(low):
        return "unknown"
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
