"""Tables 1, 2 and 3, and Figure 1: the scores of runs next to the published ones. Cells of missing runs are empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rllib_efficientzero import metrics as names
from rllib_efficientzero.analysis import plots, reference
from rllib_efficientzero.analysis.aggregates import STATISTICS, Interval, estimate
from rllib_efficientzero.analysis.document import Block, Figure, Table, Text
from rllib_efficientzero.analysis.experiments import Experiment, variant_label
from rllib_efficientzero.analysis.runs import STANDARD, STICKY, UNLABELLED, Run, Runs

BARS = ("mean", "median")
MAX_NAMED = 3
"""Most games that are named in a row's heading."""
INTERVALS = (
    "In brackets 95 % stratified bootstrap intervals, over runs within each game; without at least two runs of every "
    "game there is none. A published column has one number per game: its IQM is over games, and that of runs over runs."
)


def atari100k(runs: Runs, experiment: Experiment, budget: str, note: str) -> list[Block]:
    """Table 1, Figure 1 and later methods."""
    columns = {
        "this package, EfficientZero": _normalisable(runs.of(budget=budget, variant="efficientzero")),
        "this package, MuZero": _normalisable(runs.of(budget=budget, variant="muzero")),
    }
    columns["this package, EfficientZero, sticky actions"] = {
        game: [run for run in found if STICKY in run.returns]
        for game, found in columns["this package, EfficientZero"].items()
    }
    protocols = [STANDARD, STANDARD, STICKY]
    scores = {
        column: {game: _scores(found, protocol) for game, found in by_game.items() if found}
        for (column, by_game), protocol in zip(columns.items(), protocols, strict=True)
    }
    blocks: list[Block] = [_table_1(scores, note), _figure_1(scores, note)]
    if scores["this package, EfficientZero"]:
        blocks.append(_episodes_table(columns["this package, EfficientZero"], note))
    later = [
        [method.label, f"{method.mean:.3f}", f"{method.median:.3f}", _optional(method.iqm), method.citation]
        for method in reference.later_methods()
    ]
    caption = "As their papers print them; protocols differ. Nothing here was run by this package."
    blocks.append(Table("Other methods, published", ["method", "mean", "median", "IQM", "source"], later, caption))
    standard = {name: [run for runs in columns[name].values() for run in runs] for name in list(columns)[:2]}
    return blocks + _learning_curves(standard, list(reference.atari_games()), note)


def _table_1(scores: Mapping[str, Mapping[str, np.ndarray]], note: str) -> Table:
    games, published = reference.atari_games(), reference.published_atari()
    methods = list(reference.ATARI_METHODS)
    rows = [
        [name, f"{game.random:g}", f"{game.human:g}"]
        + [f"{game.scores[method]:g}" for method in methods]
        + [_cell(found.get(name)) for found in scores.values()]
        for name, game in games.items()
    ]
    for name in STATISTICS:
        theirs = [str(_published_estimate(method, name, list(games))) for method in methods]
        ours = [str(_estimate(found, name)) if len(found) == len(games) else "" for found in scores.values()]
        rows.append([f"normalised {name}", "", "", *theirs, *ours])
    ran = sorted({game for found in scores.values() for game in found})
    if 0 < len(ran) < len(games):
        for name in BARS:
            theirs = [str(_published_estimate(method, name, ran)) for method in methods]
            ours = [str(_estimate(found, name)) if sorted(found) == ran else "" for found in scores.values()]
            which = ", ".join(ran) if len(ran) <= MAX_NAMED else f"{len(ran)} games"
            rows.append([f"normalised {name} of {which}", "", "", *theirs, *ours])
    headings = ["game", "random", "human", *(f"{published[method].label} (published)" for method in methods), *scores]
    caption = (
        f"Raw scores, mean over runs (number of runs in parentheses). {INTERVALS} Published aggregates are computed "
        f"from their rows; SPR's give 0.703 where 0.704 is printed. {note}"
    )
    return Table("Table 1: Atari 100k", headings, rows, caption)


def _figure_1(scores: Mapping[str, Mapping[str, np.ndarray]], note: str) -> Figure:
    games = list(reference.atari_games())
    values: dict[str, dict[str, Interval]] = {}
    for name in BARS:
        values[name] = {
            reference.published_atari()[method].label: _published_estimate(method, name, games)
            for method in reference.ATARI_METHODS
        }
        values[name] |= {column: _estimate(found, name) for column, found in scores.items() if len(found) == len(games)}
    missing = [column for column, found in scores.items() if len(found) < len(games)]
    caption = "Blue: published. Orange: this package. Dashed: a human."
    if missing:
        caption += f" Without bars, because games are missing: {', '.join(missing)}."
    return Figure("Figure 1: human-normalised scores", plots.bars(values, note=note), caption)


def _episodes_table(by_game: Mapping[str, Sequence[Run]], note: str) -> Table:
    """Returns statistics of each run's episodes, and how many differ: games without chance repeat themselves."""
    rows = [
        [game, str(run.label.seed), protocol, str(len(returns)), str(len(np.unique(returns)))]
        + [f"{value:g}" for value in (returns.mean(), np.median(returns), returns.min(), returns.max())]
        for game, found in by_game.items()
        for run in found
        for protocol, returns in run.returns.items()
    ]
    columns = ["game", "seed", "protocol", "episodes", "different returns", "mean", "median", "least", "most"]
    return Table("Episodes of the final weights", columns, rows, f"Every return is in the run's directory. {note}")


def dmc100k(runs: Runs, experiment: Experiment, budget: str, note: str) -> list[Block]:
    """Table 2."""
    rows = []
    for name, row in reference.dmc_tasks().items():
        found = runs.of(budget=budget, variant="efficientzero", task=name)
        theirs = [f"{row[method]:g} ± {row[f'{method}_std']:g}" for method in reference.DMC_METHODS]
        rows.append([str(row["task"]), *theirs, mean_and_std([run.score for run in found])])
    columns = ["task", *(f"{label} (published)" for label in reference.DMC_METHODS.values()), "this package"]
    caption = f"Mean ± standard deviation over runs (their number in parentheses) of the final return. {note}"
    return [Table("Table 2: DMControl 100k", columns, rows, caption)]


def ablations(runs: Runs, experiment: Experiment, budget: str, note: str) -> list[Block]:
    """Table 3: aggregates for variants with runs of all the benchmark's games, and the score of every task."""
    published = reference.published_ablations()
    planned = experiment.tasks("full" if budget == UNLABELLED else budget)
    there = {run.label.task for run in runs.of(budget=budget)}
    tasks = [task for task in planned if budget != UNLABELLED or task in there]
    found = {
        variant: [run for run in runs.of(budget=budget, variant=variant) if run.label.task in tasks]
        for variant in experiment.variants
    }
    rows = []
    for variant, of_variant in found.items():
        theirs = published.get(variant)
        by_game = {game: _scores(played, STANDARD) for game, played in _normalisable(of_variant).items()}
        complete = set(by_game) >= set(reference.atari_games())
        rows.append(
            [variant_label(variant), *([f"{theirs.mean:.3f}", f"{theirs.median:.3f}"] if theirs else ["", ""])]
            + [str(_estimate(by_game, name)) if complete else "" for name in (*BARS, "IQM")]
            + [str(len(of_variant))]
        )
    columns = ["variant", "mean (published)", "median (published)", "mean", "median", "IQM", "runs"]
    blocks: list[Block] = [
        Table(
            "Table 3: ablations, human-normalised over 26 games",
            columns,
            rows,
            "The published row without consistency is of code that removes the augmentation with it. " + INTERVALS,
        )
    ]
    per_task = [
        [task, *(mean_and_std([run.score for run in played if run.label.task == task]) for played in found.values())]
        for task in tasks
    ]
    headings = ["task", *(variant_label(variant) for variant in found)]
    caption = f"Final return, mean ± standard deviation over runs (their number in parentheses). {note}"
    blocks.append(Table("Ablations by task", headings, per_task, caption))
    if any(len(of_variant) < 2 for of_variant in found.values()):
        blocks.append(Text("One run of a variant says little: differences may be those between seeds."))
    by_variant = {variant_label(variant): of_variant for variant, of_variant in found.items()}
    return blocks + _learning_curves(by_variant, tasks, note)


def _learning_curves(found: Mapping[str, Sequence[Run]], tasks: Sequence[str], note: str) -> list[Block]:
    """Draws the evaluations while training: a panel per task, a line per run."""
    panels: dict[str, dict[str, plots.Lines]] = {}
    for task in tasks:
        for label, of_label in found.items():
            lines = [_evaluated(run) for run in of_label if run.label.task == task and run.evaluations]
            if lines:
                panels.setdefault(task, {})[label] = lines
    if not panels:
        return []
    png = plots.curves(panels, x_label="environment steps", y_label="evaluation return", note=note)
    return [Figure("Evaluations while training", png, "One line per run; it ends at the final weights.")]


def _evaluated(run: Run) -> tuple[list[int], list[float]]:
    """Returns environment steps and mean returns of a run's evaluations, and of its final weights if played later."""
    steps = [record[names.NUM_INTERACTIONS_LIFETIME] for record in run.evaluations]
    returns = [float(np.mean(record[names.EPISODE_RETURNS])) for record in run.evaluations]
    if run.returns and run.evaluations[-1][names.NUM_UPDATES_LIFETIME] < run.last_result[names.NUM_UPDATES_LIFETIME]:
        return [*steps, run.last_result[names.NUM_INTERACTIONS_LIFETIME]], [*returns, run.score]
    return steps, returns


def mean_and_std(scores: Sequence[float]) -> str:
    """Returns scores as `813 ± 19 (3)`; those of one run without a deviation, those of none as an empty string."""
    if not scores:
        return ""
    deviation = f" ± {np.std(scores, ddof=1):.3g}" if len(scores) > 1 else ""
    return f"{np.mean(scores):.4g}{deviation} ({len(scores)})"


def _normalisable(found: Sequence[Run]) -> dict[str, list[Run]]:
    """Game -> its runs, in the table's order."""
    by_game = {game: [run for run in found if run.label.task == game] for game in reference.atari_games()}
    return {game: played for game, played in by_game.items() if played}


def _scores(found: Sequence[Run], protocol: str) -> np.ndarray:
    """`[runs]` raw scores."""
    return np.array([run.returns[protocol].mean() for run in found])


def _estimate(scores: Mapping[str, np.ndarray], statistic: str) -> Interval:
    games = reference.atari_games()
    return estimate([games[game].normalise(raw) for game, raw in scores.items()], STATISTICS[statistic])


def _published_estimate(method: str, statistic: str, games: Sequence[str]) -> Interval:
    return _estimate({game: np.array([reference.atari_games()[game].scores[method]]) for game in games}, statistic)


def _cell(scores: np.ndarray | None) -> str:
    return "" if scores is None else f"{scores.mean():.1f} ({len(scores)})"


def _optional(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
