"""`rllib plot`: learning curves of finished and running experiments, and their scores relative to humans."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Annotated, Any

import typer

from rllib_efficientzero.cli.console import say, say_warning
from rllib_efficientzero.cli.errors import InputError, exit_codes
from rllib_efficientzero.cli.stopping import ENV_STEPS, EPISODE_RETURN, EVALUATION_RETURN, lookup

RESULTS, EVALUATIONS = "result.json", "evaluation.json"
ITERATION = "training_iteration"
NOT_NORMALISED = "has training returns only, which may be of clipped rewards and single lives: a human's are not"


@dataclasses.dataclass
class Curve:
    """One line of the plot."""

    label: str
    env: str
    steps: list[float]
    values: list[float]
    spread: list[float] | None = None
    """Standard deviation over episodes."""
    is_evaluation: bool = False
    """Whether values are evaluation returns: those of self-play may be of clipped rewards and single lives."""


class NothingToDrawError(InputError):
    """A trial has no values of the kind that is to be drawn, at least not yet."""


def plot(
    runs: Annotated[list[pathlib.Path], typer.Argument(help="Experiments, trials, or their result.json.")],
    out: Annotated[
        pathlib.Path, typer.Option("--out", "-o", metavar="FILE", help="A .png, .svg or .pdf.")
    ] = pathlib.Path("curves.png"),
    metric: Annotated[
        str | None,
        typer.Option("--metric", "-m", help="Of result.json, in place of the evaluations' (else training) return."),
    ] = None,
    human: Annotated[bool, typer.Option("--human", help="Draw human-normalised scores (Atari 100k).")] = False,
) -> None:
    """Draw returns against environment steps, one line per trial, and print the last scores.

    A trial that wrote evaluation.json is drawn by its evaluation episodes, any other by its training return. For games
    of Atari 100k the human-normalised scores of evaluations are printed too, with mean, median and IQM over games; a
    training return has none, being of clipped rewards and single lives. Steps of DMControl are the agent's decisions.
    """
    with exit_codes():
        if out.suffix not in {".png", ".svg", ".pdf"}:
            raise InputError(f"curves are drawn as .png, .svg or .pdf, not {out.suffix!r}", "--out")
        if human and metric is not None:
            raise InputError("human-normalised are evaluation returns only: leave one of both out", "--human --metric")
        curves = read_curves([directory for run in runs for directory in find_trials(run)], metric, human=human)
        draw(curves, out, _axis(metric, human))
        for curve in curves:
            say(f"{curve.label}: {curve.values[-1]:.4g} at {curve.steps[-1]:,.0f} {_unit([curve])}")
        if metric is None and not human:
            _say_human_scores(curves)
        say(f"curves {out}")


def find_trials(run: pathlib.Path) -> list[pathlib.Path]:
    """Directories with a result.json: the given one, or those below it.

    Raises:
        InputError: there are none.
    """
    if run.name == RESULTS and run.is_file():
        return [run.parent]
    found = sorted(path.parent for path in [run / RESULTS, *run.glob(f"*/{RESULTS}"), *run.glob(f"*/*/{RESULTS}")])
    trials = [path for path in dict.fromkeys(found) if (path / RESULTS).is_file()]
    if not trials:
        raise InputError(f"no {RESULTS} in {str(run)!r} or below it: is it the directory of an experiment?")
    return trials


def read_curves(trials: Sequence[pathlib.Path], metric: str | None, *, human: bool = False) -> list[Curve]:
    """Returns the curves of the trials that have something to draw, and names the others in warnings.

    Args:
        trials: their directories.
        metric: of `result.json`; None: returns.
        human: normalise the returns.

    Raises:
        InputError: files are damaged, no trial has anything, or what is to be normalised is no game of Atari 100k.
    """
    curves: list[Curve] = []
    without: list[NothingToDrawError] = []
    for directory in trials:
        try:
            curve = read_curve(directory, metric)
            curves.append(_normalised(curve) if human else curve)
        except NothingToDrawError as error:
            without.append(error)
    if not curves:
        raise without[0]
    for reason in without:
        say_warning(f"not drawn: {reason}")
    return curves


def read_curve(directory: pathlib.Path, metric: str | None) -> Curve:
    """The curve of one trial.

    Raises:
        InputError: its files are damaged.
        NothingToDrawError: it has no result, or none has the metric.
    """
    rows = _rows(directory / RESULTS)
    if not rows:
        raise NothingToDrawError("has no result yet", str(directory / RESULTS))
    env = str(rows[-1].get("config", {}).get("env", ""))
    label = f"{directory.parent.name} {directory.name[:40]}"
    evaluations = directory / EVALUATIONS
    if metric is None and evaluations.is_file():
        curve = _evaluation_curve(evaluations, label, env)
        if curve.steps:
            return curve
    names = (metric,) if metric else (EVALUATION_RETURN, EPISODE_RETURN)
    for name in names:
        points = [(lookup(row, ENV_STEPS), lookup(row, name)) for row in rows]
        known = [(step, value) for step, value in points if step is not None and value is not None]
        if known:
            steps, values = [step for step, _ in known], [value for _, value in known]
            return Curve(label, env, steps, values, is_evaluation=name == EVALUATION_RETURN)
    raise NothingToDrawError(f"no result has {' or '.join(names)}", str(directory / RESULTS))


def draw(curves: Sequence[Curve], file: pathlib.Path, axis: str) -> None:
    """Writes the plot.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise InputError("plots need matplotlib: pip install 'rllib_efficientzero[plot]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for curve in curves:
        (line,) = axes.plot(curve.steps, curve.values, marker=".", label=curve.label)
        if curve.spread is not None:
            low = [value - spread for value, spread in zip(curve.values, curve.spread, strict=True)]
            high = [value + spread for value, spread in zip(curve.values, curve.spread, strict=True)]
            axes.fill_between(curve.steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel=_unit(curves), ylabel=axis)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=120)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", f"--out {file}") from error
    finally:
        plt.close(figure)


def _rows(file: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the results of a trial, without the last line if that was cut off when the run was killed.

    A resumed trial counts its iterations from its checkpoint on. Results of these and later iterations that it had
    reported before are dropped: they are no longer part of the run.
    """
    rows: list[dict[str, Any]] = []
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise InputError(f"not JSON: {error.msg}", f"{file}:{number}") from error
            break
        iteration = lookup(row, ITERATION)
        while rows and iteration is not None and (lookup(rows[-1], ITERATION) or 0) >= iteration:
            rows.pop()
        rows.append(row)
    return rows


def _evaluation_curve(file: pathlib.Path, label: str, env: str) -> Curve:
    try:
        records = json.loads(file.read_text(encoding="utf-8"))["evaluations"]
        returns = [[float(value) for value in record["episode_returns"]] for record in records]
        steps = [float(record["num_interactions_lifetime"]) for record in records]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"is damaged: {error}", str(file)) from error
    means, spread = [fmean(values) for values in returns], [pstdev(values) for values in returns]
    return Curve(label, env, steps, means, spread, is_evaluation=True)


def _unit(curves: Sequence[Curve]) -> str:
    """What steps are counted in: an agent of DMControl decides once per several steps of its environment."""
    from rllib_efficientzero.env.dm_control import is_dmc_id

    decides = [is_dmc_id(curve.env) for curve in curves]
    if all(decides):
        return "decisions"
    return "environment steps (DMControl: decisions)" if any(decides) else "environment steps"


def _axis(metric: str | None, human: bool) -> str:
    return "human-normalised score" if human else metric or "return"


def _normalised(curve: Curve) -> Curve:
    from rllib_efficientzero.scores import human_normalised

    values = [human_normalised(curve.env, value) for value in curve.values]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        raise InputError(f"{curve.label}: {curve.env!r} is no game of Atari 100k", "--human")
    if not curve.is_evaluation:
        raise NothingToDrawError(f"{curve.label} {NOT_NORMALISED}", "--human")
    return dataclasses.replace(curve, values=known, spread=None)


def _say_human_scores(curves: Sequence[Curve]) -> None:
    """One line per game, the mean over its trials, and the aggregates over games."""
    import numpy as np

    from rllib_efficientzero.analysis.aggregates import STATISTICS, estimate
    from rllib_efficientzero.scores import human_normalised

    games: dict[str, list[float]] = {}
    for curve in curves:
        score = human_normalised(curve.env, curve.values[-1])
        if score is None:
            continue
        if curve.is_evaluation:
            games.setdefault(curve.env, []).append(score)
        else:
            say_warning(f"not human-normalised: {curve.label} {NOT_NORMALISED}")
    for env, scores in games.items():
        say(f"human-normalised {env}: {fmean(scores):.3f} ({len(scores)} trials)")
    if len(games) > 1:
        runs = [np.array(scores) for scores in games.values()]
        told = ", ".join(f"{name} {estimate(runs, statistic)}" for name, statistic in STATISTICS.items())
        say(f"over {len(games)} games: {told}")
