"""`rllib train`: trains the experiments of a file, or one that the command line describes."""

from __future__ import annotations

import pathlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from rllib_efficientzero.cli.checkpoints import resolve_restore
from rllib_efficientzero.cli.console import say, say_warning
from rllib_efficientzero.cli.env_check import check_env
from rllib_efficientzero.cli.errors import ExitCode, InputError, exit_codes
from rllib_efficientzero.cli.experiment import Experiment, Overrides, load_experiments
from rllib_efficientzero.cli.inline_source import load_inline_experiment
from rllib_efficientzero.cli.options import takes_options, verbs
from rllib_efficientzero.cli.ray_session import (
    check_resources,
    local_resources,
    missing_resources,
    ray_session,
    set_verbosity,
)
from rllib_efficientzero.cli.storage import check_storage, warn_of_interrupted
from rllib_efficientzero.cli.train_options import TrainOptions

if TYPE_CHECKING:
    from rllib_efficientzero.cli.algorithms import Prepared

app = verbs()


@app.callback(invoke_without_command=True)
@takes_options(TrainOptions)
def train(
    context: typer.Context,
    options: TrainOptions,
    run: Annotated[str | None, typer.Option("--run", "--algo", "-a", "-r", help="Algorithm.")] = None,
    experiment_name: Annotated[
        str, typer.Option("--experiment-name", "-n", help="Of the experiment, and of its directory.")
    ] = "default",
    num_samples: Annotated[
        int | None, typer.Option(min=1, help="Repetitions of every grid point; draws from search spaces.")
    ] = None,
    restore: Annotated[str | None, typer.Option(metavar="CHECKPOINT", help="Checkpoint to begin with.")] = None,
    resources_per_trial: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Train an algorithm: the experiments of a file (rllib train file FILE), or one that the options describe.

    For example: rllib train --run PPO --env CartPole-v1 --stop '{"training_iteration": 10}'

    Exit codes, and what signals do, are those of `rllib train file`.
    """
    with exit_codes():
        if context.invoked_subcommand is not None:
            _check_nothing_is_given(context)
            return
        options.warn_of_old_ones()
        given = {"num_samples": num_samples, "restore": restore, "resources_per_trial": resources_per_trial}
        experiment = load_inline_experiment(experiment_name, run, given, options.overrides())
        check_env(experiment)
        _train([experiment], options)


def _check_nothing_is_given(context: typer.Context) -> None:
    """Refuses options that stand before a verb such as `file`, which would be ignored.

    Raises:
        InputError: with the first of them.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            verb = context.invoked_subcommand
            raise InputError(f"options stand behind it: rllib train {verb} FILE --seed 1", parameter.opts[0])


@app.command("file")
@takes_options(TrainOptions)
def train_file(
    file: Annotated[pathlib.Path, typer.Argument(help="Experiments: a .yaml file, or a .py file with a `config`.")],
    options: TrainOptions,
) -> None:
    """Run the experiments of FILE, one after another, each with Ray Tune.

    Ctrl-C and SIGTERM save a checkpoint of every running trial first; again, they end the run at once.

    Exit codes: 0 done; 1 a trial failed; 2 wrong input; 130 ended by Ctrl-C; 143 by SIGTERM.
    """
    with exit_codes():
        options.warn_of_old_ones()
        _train(_load(file, options.overrides(), options.verbosity), options)


def _train(experiments: list[Experiment], options: TrainOptions) -> None:
    """Makes the last checks, then runs the experiments or, with `--dry-run`, prints their plans."""
    for experiment in experiments:
        resolve_restore(experiment, options.trust_checkpoint)
        if not (options.ray_address or "").startswith("ray://"):  # with Ray Client, Tune runs on the cluster's head
            check_storage(experiment)
            if not options.resume:
                warn_of_interrupted(experiment)
    prepared = _prepare(experiments, options)
    if options.dry_run:
        _print_plans(prepared, options)
        return
    raise typer.Exit(_run(prepared, options))


def _load(file: pathlib.Path, overrides: Overrides, verbosity: int) -> list[Experiment]:
    """Loads and checks the experiments of a file: YAML or Python, by its extension."""
    if file.suffix == ".py":
        set_verbosity(verbosity)
        from rllib_efficientzero.cli.python_source import load_python_experiment

        return [load_python_experiment(file, overrides)]
    if file.suffix not in {".yaml", ".yml"}:
        raise InputError("an experiment file ends in .yaml, .yml or .py", str(file))
    experiments = load_experiments(file, overrides)
    for experiment in experiments:
        check_env(experiment)
    return experiments


def _prepare(experiments: list[Experiment], options: TrainOptions) -> list[Prepared]:
    """Makes the last checks, with ray imported but not started, then prints the warnings that all checks collected."""
    set_verbosity(options.verbosity)
    from rllib_efficientzero.cli.algorithms import prepare

    prepared = [prepare(experiment, is_cluster=bool(options.ray_address)) for experiment in experiments]
    for warning in dict.fromkeys(warning for experiment in experiments for warning in experiment.warnings):
        say_warning(warning)
    return prepared


def _print_plans(prepared: list[Prepared], options: TrainOptions) -> None:
    """Prints the plans, and warns if this machine, where the trials would run, is too small for one of them."""
    from rllib_efficientzero.cli.algorithms import total_resources
    from rllib_efficientzero.cli.dry_run import print_plan

    for plan in prepared:
        print_plan(plan, all_keys=options.verbosity > 0)
        if not options.ray_address:
            problem = missing_resources(total_resources(plan.resources), local_resources(options.ray()))
            if problem:
                say_warning(f"{plan.experiment.where}: {problem}" if plan.experiment.where else problem)


def _run(prepared: list[Prepared], options: TrainOptions) -> ExitCode:
    """Runs one experiment after another; returns the worst exit code, or at once that of a signal."""
    from rllib_efficientzero.cli.algorithms import total_resources
    from rllib_efficientzero.cli.report import print_end, print_start
    from rllib_efficientzero.cli.runner import run_experiment

    waiting = [experiment for experiment in prepared if not (options.resume and _is_finished(experiment))]
    if not waiting:
        return ExitCode.DONE
    code = ExitCode.DONE
    with ray_session(options.ray()):
        for experiment in waiting:
            needed = total_resources(experiment.resources)
            check_resources(needed, experiment.experiment.where, is_cluster=bool(options.ray_address))
        for experiment in waiting:
            print_start(experiment, options.resume)
            outcome = run_experiment(experiment, options.resume, options.trust_checkpoint, options.verbosity)
            print_end(experiment, outcome, sys.argv[1:])
            if outcome.was_stopped:
                return outcome.exit_code
            code = max(code, outcome.exit_code)
    return code


def _is_finished(prepared: Prepared) -> bool:
    """Whether an earlier run of the experiment leaves nothing to do; prints its outcome then."""
    from rllib_efficientzero.cli.report import print_end
    from rllib_efficientzero.cli.runner import finished_before

    outcome = finished_before(prepared)
    if outcome is None:
        return False
    say(f"{prepared.experiment.name} is finished already; raise a stop criterion to train on")
    print_end(prepared, outcome, sys.argv[1:])
    return True
