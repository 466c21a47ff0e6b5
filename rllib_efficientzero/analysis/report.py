"""`rllib paper report`: the results of all runs, next to the published ones, in one document."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from rllib_efficientzero.analysis import document, experiments, measurement
from rllib_efficientzero.analysis.billing import cost_of
from rllib_efficientzero.analysis.document import Block, Section, Table, Text
from rllib_efficientzero.analysis.experiments import Experiment
from rllib_efficientzero.analysis.runs import UNLABELLED, Run, Runs, read_runs
from rllib_efficientzero.analysis.settings import compare
from rllib_efficientzero.checkpoint.manifest import versions

TITLE = "EfficientZero: the paper's experiments, from our runs"
FULL = "full"


def write_report(roots: Sequence[pathlib.Path], directory: pathlib.Path) -> tuple[list[pathlib.Path], Runs]:
    """Writes the report of all runs and measurements below `roots`.

    Returns:
        The files, and what was found and left out.

    Raises:
        MissingMatplotlibError: matplotlib is not installed.
    """
    runs = read_runs(*roots)
    sections = [_overview(runs, roots)]
    for experiment in experiments.load_all():
        sections += _sections(experiment, runs, roots)
    sections += [_table_6(runs), _costs(runs), _protocols(runs), _left_out(runs)]
    return document.write(directory, TITLE, sections), runs


def notes() -> dict[str, str]:
    """Budget -> the note on each of its tables and plots; includes runs without a label."""
    return experiments.budgets() | {
        UNLABELLED: "Runs that were not made by `rllib paper run`: their budgets are their own, see the costs."
    }


def _overview(runs: Runs, roots: Sequence[pathlib.Path]) -> Section:
    """What is there, and what is missing."""
    rows = []
    for experiment in experiments.load_all():
        for budget in experiments.budgets():
            plans = experiment.plans(budget)
            labels = {plan.label for plan in plans}
            there = sum(run.label in labels for run in runs.runs)
            measured = ""
            if experiment.measure is not None:
                measured = "yes" if _measurements(experiment, budget, roots)[0] else "no"
            rows.append([experiment.title, experiment.reproduces, budget, f"{there} of {len(plans)}", measured])
    blocks: list[Block] = [
        Text(
            "Every number in a column of this package comes from runs found on disk. A cell without one is empty. "
            "Published numbers stand in columns of their own, which say so."
        ),
        Table("What is there", ["experiment", "reproduces", "budget", "runs", "measured"], rows),
    ]
    blocks += [Text(note, warning=True) for budget, note in notes().items() if note and runs.of(budget=budget)]
    if runs.left_out:
        blocks.append(Text(f"{len(runs.left_out)} directories were left out; the last section says why.", warning=True))
    return Section("Overview", blocks)


def _sections(experiment: Experiment, runs: Runs, roots: Sequence[pathlib.Path]) -> list[Section]:
    """Returns one section for the paper's budget, even if nothing was run, and one for every other with results."""
    sections = []
    for budget, note in notes().items():
        title = f"{experiment.reproduces}: {experiment.title} ({budget})"
        blocks: list[Block] = [Text(experiment.about)]
        if note:
            blocks.append(Text(note, warning=True))
        if experiment.measure is not None:
            found, problems = _measurements(experiment, budget, roots)
            blocks += [Text(problem, warning=True) for problem in problems]
            for one in found:
                blocks += _presented(experiment, one, note)
            is_there = bool(found or problems)
        else:
            is_there = _has_scores(experiment, runs, budget)
            if is_there or budget == FULL:
                blocks += experiment.present(runs, experiment, budget, note)
        if budget == FULL and not is_there:
            blocks.insert(1, Text("Nothing of this was run at the paper's budget.", warning=True))
        if is_there or budget == FULL:
            sections.append(Section(title, blocks))
    return sections


def _presented(experiment: Experiment, one: measurement.Measurement, note: str) -> list[Block]:
    """Presents a measurement of an experiment; one that this version cannot read is left out, with a warning."""
    try:
        return [*experiment.present(one, note), Text(_made_from(one))]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        reason = f"it does not hold what this version measures ({type(error).__name__}: {error})"
        return [Text(f"left out: {one.path}: {reason}; without it, it is measured anew", warning=True)]


def _has_scores(experiment: Experiment, runs: Runs, budget: str) -> bool:
    tasks = experiment.tasks(FULL if budget == UNLABELLED else budget)
    return any(run.label.variant in experiment.variants and run.label.task in tasks for run in runs.of(budget=budget))


def _measurements(
    experiment: Experiment, budget: str, roots: Sequence[pathlib.Path]
) -> tuple[list[measurement.Measurement], list[str]]:
    """Reads an experiment's measurements below all roots; returns also what is wrong with damaged ones."""
    found, problems = [], []
    for root in roots:
        try:
            one = measurement.read(measurement.directory_of(root, experiment.name, budget))
        except measurement.DamagedMeasurementError as error:
            problems.append(f"left out: {error}")
            continue
        if one is not None:
            found.append(one)
    return found, problems


def _made_from(one: measurement.Measurement) -> str:
    about = one.about
    made = "; ".join(
        f"{variant}: {entry['protocol']['env']}, {entry['num_interactions']:,} steps, {entry['num_updates']:,} updates "
        f"({entry['path']})"
        for variant, entry in about["checkpoints"].items()
    )
    return (
        f"Measured in {about['seconds']:.0f} s ({about['cpu_seconds']:.0f} s of CPU) on {about['device']} with "
        f"{_settings_text(about['parameters'])}; from {made}."
    )


def _table_6(runs: Runs) -> Section:
    """Compares settings with the paper's, of one EfficientZero run for each budget and kind of environment."""
    chosen: dict[str, Run] = {}
    for run in runs.runs:
        if run.label.variant == "efficientzero":
            chosen.setdefault(f"{run.label.budget}, {str(run.protocol['env']).split('/')[0]}", run)
    columns = {name: compare(run.config, run.protocol) for name, run in chosen.items()}
    rows = [
        [name, paper, *(_marked(settings[index].ours, settings[index].differs) for settings in columns.values())]
        for index, (name, paper) in enumerate((setting.name, setting.paper) for setting in compare({}, {}))
    ]
    caption = "≠ marks what differs from the paper; a cell is empty where a run has no such setting."
    table = Table("Table 6: settings", ["setting", "paper", *columns], rows, caption)
    used = Text("Columns are of: " + "; ".join(f"{name}: {run.path}" for name, run in chosen.items()) + ".")
    return Section("Table 6: settings", [table, used] if chosen else [table, Text("There are no runs to compare.")])


def _marked(value: str, differs: bool) -> str:
    return f"≠ {value}" if differs else value


def _costs(runs: Runs) -> Section:
    rows = []
    for run in runs.runs:
        cost = cost_of(run)
        numbers = [cost.hours, cost.cpu_hours, cost.gpu_hours, cost.env_steps_per_s, cost.updates_per_s]
        optional = [cost.replay_megabytes, cost.machine_ram_percent]
        rows.append(
            [str(run.label), *(f"{value:.2f}" for value in numbers)]
            + ["" if value is None else f"{value:.1f}" for value in optional]
            + [cost.hostname]
        )
    columns = ["run", "wall clock (h)", "CPU hours", "GPU hours", "env steps/s", "updates/s", "replay (MB)"]
    columns += ["machine's RAM (%)", "host"]
    caption = (
        "CPU and GPU hours are what the run reserved, times its wall clock. Rates are over the whole run, evaluations "
        "included. RAM is of the whole machine at the end."
    )
    return Section("Cost", [Table("Cost of every run", columns, rows, caption)])


def _protocols(runs: Runs) -> Section:
    """How environments were played, and with which versions."""
    rows: dict[tuple[str, ...], int] = {}
    for run in runs.runs:
        described = [
            run.label.budget,
            str(run.protocol["env"]),
            _settings_text(run.protocol.get("training", {})),
            _settings_text(run.protocol.get("evaluation", {})),
            ", ".join(f"{name} {version}" for name, version in run.protocol.get("versions", {}).items()),
        ]
        rows[tuple(described)] = rows.get(tuple(described), 0) + 1
    columns = ["budget", "environment", "training", "evaluation", "versions", "runs"]
    table = Table("How environments were played", columns, [[*row, str(count)] for row, count in rows.items()])
    written = ", ".join(f"{name} {version}" for name, version in versions().items())
    return Section("Protocols and versions", [table, Text(f"This report was written with {written}.")])


def _settings_text(settings: dict[str, object]) -> str:
    shown = {key: value for key, value in settings.items() if key not in ("versions", "env_id", "game", "task")}
    return ", ".join(f"{key} {value}" for key, value in shown.items())


def _left_out(runs: Runs) -> Section:
    rows = [[str(left.path), left.reason] for left in runs.left_out]
    blocks: list[Block] = (
        [Table("Left out", ["directory", "reason"], rows)] if rows else [Text("Nothing was left out.")]
    )
    return Section("Left out", blocks)
