"""Reads runs from disk; unfinished and damaged ones are left out, with the reason.

A run is a directory with `protocol.json` (see docs/design.md, "Files of a run"). `label.json`, in it or above it, says
what `rllib paper run` trained it for; a run without one is labelled by its config and protocol.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rllib_efficientzero import metrics as names
from rllib_efficientzero.run_files import EVALUATION_FILE, PROTOCOL_FILE

LABEL_FILE = "label.json"
SCORES_FILE = "scores.json"
"""Games of the final weights: `{"num_updates_lifetime", "protocols": {name: {"returns", "lengths"}}, ...}`."""
STANDARD, STICKY = "standard", "sticky"
UNLABELLED = "unlabelled"
PAPER_SEARCH = "puct"
DIGEST_LENGTH = 6
TAIL_BYTES = 1 << 20
"""How much of the end of `result.json` is read: many lines, which have tens of kilobytes per iteration."""
TIME = "time_total_s"
"""Key of results: seconds of the run so far."""
INGREDIENTS = ("use_consistency", "use_augmentation", "use_value_prefix", "use_off_policy_correction")
VARIANT_OF = {
    (True, True, True, True): "efficientzero",
    (False, True, True, True): "without-consistency",
    (False, False, True, True): "without-consistency-and-augmentation",
    (True, True, False, True): "without-value-prefix",
    (True, True, True, False): "without-correction",
    (False, False, False, False): "muzero",
}
"""Which of `INGREDIENTS` are on -> name of the variant."""
NOT_SETTINGS = (
    *("seed", "evaluation", "num_cpus", "num_gpus", "resources", "placement", "num_env_runners", "num_learners"),
    *("num_reanalyze_actors", "num_search_threads", "compile", "timeout", "restart", "log_", "render"),
)
"""Parts of the config keys that say where and how a run was computed, not what was learned."""
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Addresses of objects, which are printed into `result.json` and differ in every process."""


@dataclass(frozen=True)
class Label:
    """What a run was trained for; of finished runs with the same label, only one counts."""

    budget: str
    task: str
    variant: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task}, {self.variant}, seed {self.seed} ({self.budget})"


@dataclass(frozen=True)
class Run:
    """One finished run."""

    path: pathlib.Path
    label: Label
    config: Mapping[str, Any]
    """as RLlib resolved it"""
    protocol: Mapping[str, Any]
    evaluations: list[dict[str, Any]]
    """of `evaluation.json`"""
    last_result: Mapping[str, Any]
    returns: Mapping[str, np.ndarray]
    """protocol -> `[episodes]` returns of the final weights; empty if they were never evaluated"""

    @property
    def score(self) -> float:
        """Mean return of the final weights."""
        return float(self.returns[STANDARD].mean())


@dataclass(frozen=True)
class LeftOut:
    """A directory that is left out, or not counted for scores, and why."""

    path: pathlib.Path
    reason: str


@dataclass
class Runs:
    """The runs found below directories, and what was left out."""

    runs: list[Run] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def of(self, *, budget: str, variant: str | None = None, task: str | None = None) -> list[Run]:
        """Returns the runs of a budget that have scores, of a variant and a task if given, sorted by seed."""
        found = [
            run
            for run in self.runs
            if run.returns
            and run.label.budget == budget
            and variant in (None, run.label.variant)
            and task in (None, run.label.task)
        ]
        return sorted(found, key=lambda run: run.label.seed)


class UnusableRunError(ValueError):
    """A run cannot be counted; the message says why."""


def read_runs(*roots: pathlib.Path) -> Runs:
    """Reads every run below the directories. Of runs with the same label, the one that ended first counts.

    Runs without a label file may have the same task and variant but other settings, as the trials of a search do. Those
    whose settings differ from the first's become variants of their own, named with a digest of the settings.
    """
    found = Runs()
    kept: dict[Label, Run] = {}
    settings: dict[tuple[str, str], str] = {}
    for directory in sorted({path for root in roots for path in _run_directories(root)}, key=_written):
        try:
            run = read_run(directory)
        except UnusableRunError as error:
            found.left_out.append(LeftOut(directory, str(error)))
            continue
        if run.label.budget == UNLABELLED:
            digest = _settings_digest(run.config)
            if settings.setdefault((run.label.task, run.label.variant), digest) != digest:
                variant = f"{run.label.variant}, settings {digest}"
                run = replace(run, label=replace(run.label, variant=variant))
        if run.label in kept:
            reason = f"duplicate: {kept[run.label].path} is {run.label}, too"
            found.left_out.append(LeftOut(directory, reason))
            continue
        kept[run.label] = run
        if not run.returns:
            reason = "its final weights were not evaluated: it counts for costs and settings, not for scores"
            found.left_out.append(LeftOut(directory, reason))
    found.runs = list(kept.values())
    return found


def read_run(directory: pathlib.Path) -> Run:
    """Reads one run.

    Raises:
        UnusableRunError: a file is missing or damaged, or the run is not finished.
    """
    protocol = _read_json(directory / PROTOCOL_FILE)
    result = _last_result(directory)
    config = result.get("config")
    if not isinstance(config, dict):
        raise UnusableRunError("result.json has no config in its last line")
    try:
        label = _label(directory, config, protocol)
        updates, total = int(result[names.NUM_UPDATES_LIFETIME]), int(protocol["total_updates"])
        if not result.get(names.TRAINING_DONE):
            raise UnusableRunError(f"not finished: {updates} of {total} updates ({label})")
        evaluations = _evaluations(directory)
        _check_what_reports_read(result, protocol, evaluations)
        returns = _final_returns(directory, evaluations, updates)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UnusableRunError):
            raise
        raise UnusableRunError(f"damaged: {type(error).__name__}: {error}") from error
    return Run(directory, label, config, protocol, evaluations, result, returns)


def progress(directory: pathlib.Path) -> tuple[bool, float]:
    """Returns whether the run in a directory is finished, and the seconds it has taken so far."""
    result = _last_result(directory)
    return bool(result.get(names.TRAINING_DONE)), float(result.get(TIME, 0.0))


def write_label(directory: pathlib.Path, label: Label) -> None:
    """Writes the label file of the runs below a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / LABEL_FILE).write_text(json.dumps(vars(label), indent=1))


def trial_directories(root: pathlib.Path) -> list[pathlib.Path]:
    """Directories of runs below `root`, the newest last."""
    return sorted(_run_directories(root), key=_written)


def _run_directories(root: pathlib.Path) -> Iterator[pathlib.Path]:
    for name in (PROTOCOL_FILE, "result.json"):
        for file in root.rglob(name):
            yield file.parent


def _written(directory: pathlib.Path) -> tuple[float, str]:
    file = directory / "result.json"
    return (file.stat().st_mtime if file.exists() else 0.0, str(directory))


def _label(directory: pathlib.Path, config: Mapping[str, Any], protocol: Mapping[str, Any]) -> Label:
    for parent in (directory, *directory.parents):
        file = parent / LABEL_FILE
        if file.exists():
            return Label(**_read_json(file))
    return Label(UNLABELLED, _task(protocol), _variant(config, protocol), int(config.get("seed") or 0))


def _variant(config: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """Names a run's variant as the paper does, and what else is not the paper's: tables select runs by exact names."""
    switches = tuple(bool(config.get(name, True)) for name in INGREDIENTS)
    parts = [VARIANT_OF.get(switches, "another variant")]  # type: ignore[arg-type]
    training = protocol.get("training", {})
    if config.get("search", PAPER_SEARCH) != PAPER_SEARCH:
        parts.append(f"search {config['search']}")
    if config.get("action_representation") == "sampled" or training.get("bins_per_dimension", 0) is None:
        parts.append("sampled actions")
    if training.get("from_pixels") is False:
        parts.append("from states")
    return ", ".join(parts)


def _settings_digest(config: Mapping[str, Any]) -> str:
    """Hashes the settings of what was learned and how; not the seed, nor how and where it was computed."""
    kept = {
        key: value
        for key, value in config.items()
        if not key.startswith("__") and not any(part in key for part in NOT_SETTINGS)
    }
    text = ADDRESS.sub("", json.dumps(kept, sort_keys=True, default=str))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


def _task(protocol: Mapping[str, Any]) -> str:
    """`Pong`, `reacher-easy`, or the environment's name."""
    training = protocol.get("training", {})
    return str(training.get("game") or training.get("task") or protocol["env"])


def _evaluations(directory: pathlib.Path) -> list[dict[str, Any]]:
    file = directory / EVALUATION_FILE
    return _read_json(file)["evaluations"] if file.exists() else []


def _check_what_reports_read(
    result: Mapping[str, Any], protocol: Mapping[str, Any], evaluations: list[dict[str, Any]]
) -> None:
    """Raises KeyError, TypeError or ValueError if an entry is missing or no number, so that reports need not check."""
    for key in (TIME, names.NUM_INTERACTIONS_LIFETIME):
        float(result[key])
    str(protocol["env"])
    for record in evaluations:
        float(record[names.NUM_INTERACTIONS_LIFETIME])
        np.array(record[names.EPISODE_RETURNS], dtype=np.float64)


def _final_returns(directory: pathlib.Path, evaluations: list[dict[str, Any]], updates: int) -> dict[str, np.ndarray]:
    """Protocol -> returns of the final weights: from `scores.json`, else from an evaluation after the last update."""
    found: dict[str, np.ndarray] = {}
    for record in evaluations:
        if record[names.NUM_UPDATES_LIFETIME] == updates:
            found[STANDARD] = np.array(record[names.EPISODE_RETURNS], dtype=np.float64)
    if (directory / SCORES_FILE).exists():
        scores = _read_json(directory / SCORES_FILE)
        if scores[names.NUM_UPDATES_LIFETIME] == updates:
            found |= {name: np.array(played["returns"], float) for name, played in scores["protocols"].items()}
    if any(returns.ndim != 1 or not len(returns) or not np.isfinite(returns).all() for returns in found.values()):
        raise UnusableRunError("its returns are not a list of numbers")
    return found


def _last_result(directory: pathlib.Path) -> dict[str, Any]:
    """Returns the last complete line of `result.json`; a run that was killed may have left a part of one after it."""
    file = directory / "result.json"
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - TAIL_BYTES))
            lines = opened.read().splitlines()
    except FileNotFoundError:
        raise UnusableRunError("there is no result.json: the run ended before its first iteration") from None
    except OSError as error:
        raise UnusableRunError(f"result.json cannot be read: {error}") from error
    for line in reversed(lines):
        try:
            result = json.loads(line)
        except ValueError:
            continue
        if isinstance(result, dict):
            return result
    raise UnusableRunError("result.json has no whole line")


def _read_json(file: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged: {error}"
        raise UnusableRunError(f"{file.name} {reason}") from error
    if not isinstance(content, dict):
        raise UnusableRunError(f"{file.name} is damaged: it holds no JSON object")
    return content
