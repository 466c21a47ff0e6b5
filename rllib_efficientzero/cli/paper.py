"""`rllib paper`: the paper's experiments as commands, and a report of what they gave."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from rllib_efficientzero.cli.console import say, say_error, say_warning
from rllib_efficientzero.cli.errors import ExitCode, InputError, exit_codes
from rllib_efficientzero.cli.options import verbs

if TYPE_CHECKING:
    from rllib_efficientzero.analysis.experiments import Experiment
    from rllib_efficientzero.analysis.running import Setup

app = verbs(help="The paper's experiments: list them, run them, report on them.")

RUNS = pathlib.Path("paper_runs")


@app.callback()
def paper() -> None:
    """The paper's experiments: list them, run them, report on them."""


@app.command("list")
def list_experiments() -> None:
    """Every experiment with what it reproduces, and its runs by budget."""
    from rllib_efficientzero.analysis import experiments

    with exit_codes():
        for experiment in experiments.load_all():
            say(f"{experiment.name}: {experiment.title} ({experiment.reproduces})", "bold")
            say(f"  {experiment.about}")
            counts = [f"{budget} {len(experiment.plans(budget))}" for budget in experiments.budgets()]
            say(f"  runs: {', '.join(counts)}")


@app.command("run")
def run_experiments(
    names: Annotated[list[str], typer.Argument(metavar="EXPERIMENT...", help="Names of `rllib paper list`, or `all`.")],
    budget: Annotated[str, typer.Option(help="smoke: minutes, to see that all runs; small: an afternoon; full.")],
    runs: Annotated[pathlib.Path, typer.Option(help="Directory of the runs; finished ones there are kept.")] = RUNS,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="VARIANT=PATH", help="Measure with this checkpoint; train no run for it."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Training commands at a time.")] = 1,
    device: Annotated[str, typer.Option(help="Where trained networks are measured: cpu, cuda, ...")] = "cpu",
    ray_address: Annotated[str | None, typer.Option(help="Cluster that all runs share ('auto', host:port).")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what is to be run, and how long it would take here; run nothing.")
    ] = False,
) -> None:
    """Train, play and measure what is missing of experiments.

    Runs are shared between experiments, finished ones are skipped, interrupted ones go on.

    Exit codes: 0 done; 1 something failed, the rest was done; 2 wrong input; 130 ended by Ctrl-C; 143 by SIGTERM.
    """
    from rllib_efficientzero.analysis import running

    code = ExitCode.DONE
    with exit_codes():
        chosen = _load(names, budget)
        given = _given(checkpoint or [], chosen)
        setup = running.Setup(runs.absolute(), budget, jobs, device, ray_address, log=say)
        if dry_run:
            _print_plan(chosen, setup, given)
            return
        setup.directory.mkdir(parents=True, exist_ok=True)
        for failure in running.run(chosen, setup, given):
            say_error(failure)
            code = ExitCode.TRIAL_ERRORED
        say(f"rllib paper report {runs} -o report")
    raise typer.Exit(code)


@app.command("report")
def report(
    runs: Annotated[list[pathlib.Path], typer.Argument(metavar="RUNS...", help="Directories of runs.")],
    output: Annotated[pathlib.Path, typer.Option("--output", "-o", help="Directory of the report.")],
) -> None:
    """Write report.html, one self-contained file, and report.md: tables, plots, costs, and what is missing."""
    with exit_codes():
        missing = [str(path) for path in runs if not path.is_dir()]
        if missing:
            raise InputError(f"there is no directory {', '.join(missing)}", "RUNS")
        from rllib_efficientzero.analysis.plots import MissingMatplotlibError
        from rllib_efficientzero.analysis.report import write_report

        try:
            files, found = write_report(runs, output)
        except MissingMatplotlibError as error:
            raise InputError(str(error)) from None
        for left in found.left_out:
            say_warning(f"left out: {left.path}: {left.reason}")
        say(f"{len(found.runs)} runs: {', '.join(map(str, files))}")


def _load(names: list[str], budget: str) -> list[Experiment]:
    from rllib_efficientzero.analysis import experiments

    try:
        chosen = experiments.load_all() if names == ["all"] else [experiments.load(name) for name in names]
        for experiment in chosen:
            experiment.plans(budget)
    except experiments.UnknownExperimentError as error:
        raise InputError(str(error)) from None
    return chosen


def _given(options: list[str], chosen: list[Experiment]) -> dict[str, pathlib.Path]:
    """Parses `--checkpoint` into variant -> checkpoint; the variant must be measured, the checkpoint hold a policy."""
    from rllib_efficientzero.checkpoint.manifest import CheckpointError
    from rllib_efficientzero.checkpoint.policy_files import read_description

    measured = {name for experiment in chosen if experiment.measure is not None for name in experiment.variants}
    given = {}
    for option in options:
        variant, separator, path = option.partition("=")
        if not separator or not pathlib.Path(path).is_dir():
            raise InputError(f"write VARIANT=PATH with the directory of a checkpoint, not {option!r}", "--checkpoint")
        if variant not in measured:
            there_are = f"only {', '.join(sorted(measured))}" if measured else "they measure with none"
            raise InputError(f"the chosen experiments measure no variant {variant!r}: {there_are}", "--checkpoint")
        try:
            read_description(pathlib.Path(path))
        except CheckpointError as error:
            raise InputError(str(error), f"--checkpoint {option}") from None
        given[variant] = pathlib.Path(path).absolute()
    return given


def _print_plan(chosen: list[Experiment], setup: Setup, given: dict[str, pathlib.Path]) -> None:
    """Prints runs by kind, with their state and, from a few timed network calls, how long they take on this CPU."""
    from rllib_efficientzero import cost
    from rllib_efficientzero.analysis import estimates, running

    plans = running.needed_plans(chosen, setup.budget, given)
    kinds: dict[tuple[str, str, float], list[bool]] = {}
    known = estimates.Estimates()
    for plan in plans:
        kind = (plan.suite, plan.label.variant, known.seconds(plan))
        kinds.setdefault(kind, []).append(running.is_finished(plan, setup))
    total = 0.0
    for (suite, variant, seconds), finished in kinds.items():
        waiting = finished.count(False)
        total += waiting * seconds
        say(f"{suite}, {variant}: {waiting} of {len(finished)} runs to be trained, each about {cost.describe(seconds)}")
    say(f"all of them one by one: about {cost.describe(total)}")
    say("That is on this machine's CPU with nothing beside it: a GPU, environments and evaluations are not counted in.")
