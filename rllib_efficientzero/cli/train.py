"""`rllib train`: the verb that trains. `rllib train file FILE` runs the experiments of a file."""

from __future__ import annotations

import pathlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rllib_efficientzero.cli.checkpoints import resolve_restore
from rllib_efficientzero.cli.console import say, say_warning
from rllib_efficientzero.cli.env_check import check_env
from rllib_efficientzero.cli.errors import ExitCode, InputError, exit_codes
from rllib_efficientzero.cli.experiment import Experiment, Overrides, load_experiments
from rllib_efficientzero.cli.overrides import parse_json_option
from rllib_efficientzero.cli.ray_session import RayOptions, check_resources, ray_session, set_verbosity

if TYPE_CHECKING:
    from rllib_efficientzero.cli.algorithms import Prepared

app = typer.Typer(no_args_is_help=True, help="Train an algorithm.")

RAY = "Ray"
CHECKPOINTS = "Checkpoints"


@app.callback()
def train() -> None:
    """Train an algorithm."""


@app.command("file")
def train_file(
    file: Annotated[pathlib.Path, typer.Argument(help="Experiments: a .yaml file, or a .py file with a `config`.")],
    stop: Annotated[
        str, typer.Option("--stop", "-s", metavar="JSON", help="Stop criteria over the file's: metric -> threshold.")
    ] = "{}",
    config: Annotated[
        str, typer.Option("--config", "-c", metavar="JSON", help="Config keys merged over the file's.")
    ] = "{}",
    env: Annotated[str | None, typer.Option("--env", "-e", help="Environment in place of the file's.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed in place of the file's.")] = None,
    storage_path: Annotated[
        str | None,
        typer.Option(
            "--storage-path", metavar="DIR", help="Where results go: DIR/EXPERIMENT. (default: ~/ray_results)"
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoints of the same command's last run.")
    ] = False,
    trust_checkpoint: Annotated[
        bool, typer.Option("--trust-checkpoint", help="Load checkpoints that are not the experiment's own (pickles).")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run (config, resources, protocol); start nothing.")
    ] = False,
    checkpoint_freq: Annotated[
        int | None,
        typer.Option(
            min=0, help="Iterations between checkpoints; 0: none before the end.", rich_help_panel=CHECKPOINTS
        ),
    ] = None,
    checkpoint_at_end: Annotated[
        bool | None,
        typer.Option(help="A checkpoint after the last iteration. (default: yes)", rich_help_panel=CHECKPOINTS),
    ] = None,
    keep_checkpoints_num: Annotated[
        int | None, typer.Option(min=1, help="Keep so many checkpoints. (default: all)", rich_help_panel=CHECKPOINTS)
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Train on this running cluster ('auto', host:port).", rich_help_panel=RAY)
    ] = None,
    ray_num_cpus: Annotated[int | None, typer.Option(min=1, help="CPUs of a local ray.", rich_help_panel=RAY)] = None,
    ray_num_gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of a local ray.", rich_help_panel=RAY)] = None,
    local_mode: Annotated[
        bool,
        typer.Option("--local-mode", help="Sample, learn and evaluate in one process, to debug.", rich_help_panel=RAY),
    ] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="-v: RLlib's and Tune's messages; -vv: all of them.")
    ] = 0,
) -> None:
    """Run the experiments of FILE, one after another, each with Ray Tune.

    Ctrl-C and SIGTERM save a checkpoint of every running trial first; again, they end the run at once.

    Exit codes: 0 done; 1 a trial failed; 2 wrong input; 130 ended by Ctrl-C; 143 by SIGTERM.
    """
    with exit_codes():
        given: dict[str, Any] = parse_json_option(config, "--config")
        if verbose:
            given.setdefault("log_level", "INFO" if verbose == 1 else "DEBUG")
        checkpoint = {
            "checkpoint_frequency": checkpoint_freq,
            "checkpoint_at_end": checkpoint_at_end,
            "num_to_keep": keep_checkpoints_num,
        }
        overrides = Overrides(
            config=given,
            stop=parse_json_option(stop, "--stop"),
            env=env,
            storage_path=storage_path,
            checkpoint={key: value for key, value in checkpoint.items() if value is not None},
            seed=seed,
            local_mode=local_mode,
        )
        experiments = _load(file, overrides, verbose)
        for experiment in experiments:
            resolve_restore(experiment, trust_checkpoint)
        prepared = _prepare(experiments, verbose)
        if dry_run:
            _print_plans(prepared, all_keys=verbose > 0)
            return
        options = RayOptions(ray_address, ray_num_cpus, ray_num_gpus, verbose)
        code = _run(prepared, options, resume, trust_checkpoint)
    raise typer.Exit(code)


def _load(file: pathlib.Path, overrides: Overrides, verbosity: int) -> list[Experiment]:
    """The checked experiments of a file, by its extension."""
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


def _prepare(experiments: list[Experiment], verbosity: int) -> list[Prepared]:
    """The last checks, with ray imported but not started; then the warnings all checks collected."""
    set_verbosity(verbosity)
    from rllib_efficientzero.cli.algorithms import prepare

    prepared = [prepare(experiment) for experiment in experiments]
    for warning in dict.fromkeys(warning for experiment in experiments for warning in experiment.warnings):
        say_warning(warning)
    return prepared


def _print_plans(prepared: list[Prepared], all_keys: bool) -> None:
    from rllib_efficientzero.cli.dry_run import print_plan

    for plan in prepared:
        print_plan(plan, all_keys)


def _run(prepared: list[Prepared], options: RayOptions, resume: bool, trusted: bool) -> ExitCode:
    """One experiment after another; the first bad end is the command's, and a signal ends them all."""
    from rllib_efficientzero.cli.algorithms import total_resources
    from rllib_efficientzero.cli.report import print_end, print_start
    from rllib_efficientzero.cli.runner import run_experiment

    waiting = [experiment for experiment in prepared if not (resume and _is_finished(experiment))]
    if not waiting:
        return ExitCode.DONE
    code = ExitCode.DONE
    with ray_session(options):
        for experiment in waiting:
            needed = total_resources(experiment.resources)
            check_resources(needed, experiment.experiment.where, is_cluster=bool(options.address))
        for experiment in waiting:
            print_start(experiment, resume)
            outcome = run_experiment(experiment, resume, trusted, options.verbosity)
            print_end(experiment, outcome, sys.argv[1:])
            if outcome.was_stopped:
                return outcome.exit_code
            code = max(code, outcome.exit_code)
    return code


def _is_finished(prepared: Prepared) -> bool:
    """Says so if an earlier run of the experiment leaves nothing to do."""
    from rllib_efficientzero.cli.report import print_end
    from rllib_efficientzero.cli.runner import finished_before

    outcome = finished_before(prepared)
    if outcome is None:
        return False
    say(f"{prepared.experiment.name} is finished already; raise a stop criterion to train on")
    print_end(prepared, outcome, sys.argv[1:])
    return True
