"""The paper's experiments: one YAML file each, which refers to the suites and variants of `suites.yaml`."""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from rllib_efficientzero.analysis import reference
from rllib_efficientzero.analysis.runs import Label

HERE = resources.files("rllib_efficientzero.analysis.experiments")
SUITES_FILE = "suites.yaml"
NAMES = ("atari100k", "dmc100k", "ablations", "decoder", "value-prefix", "value-targets")
"""In the order of the paper."""
ALL = "all"


class UnknownExperimentError(ValueError):
    """There is no such experiment, budget or variant."""


@dataclass(frozen=True)
class Plan:
    """A run to be trained."""

    label: Label
    suite: str
    episodes: int | None
    """to play with the final weights; None: its experiment needs no scores"""
    keep_all_checkpoints: bool

    @property
    def name(self) -> str:
        """Name of its directory, below that of the budget."""
        return f"{self.label.task}_{self.label.variant}_seed-{self.label.seed}"


@dataclass(frozen=True)
class Experiment:
    """One of the paper's experiments."""

    name: str
    content: Mapping[str, Any]

    @property
    def title(self) -> str:
        return str(self.content["title"])

    @property
    def reproduces(self) -> str:
        """The tables and figures of the paper that it reproduces."""
        return str(self.content["reproduces"])

    @property
    def about(self) -> str:
        return str(self.content["about"])

    @property
    def variants(self) -> list[str]:
        return list(self.content["variants"])

    @property
    def measure(self) -> Callable[..., Any] | None:
        """The function that measures with the trained networks; None if only their scores are needed."""
        return _function(self.content["measure"]) if "measure" in self.content else None

    @property
    def present(self) -> Callable[..., Any]:
        """The function that makes the blocks of its section in the report."""
        return _function(self.content["function"])

    def parameters(self, budget: str) -> dict[str, Any]:
        """Parameters of `measure`."""
        return dict(self._budget(budget).get("parameters", {}))

    def suite(self, budget: str) -> str:
        """The suite of the runs; that of a smaller budget may have smaller tasks."""
        return str(self._budget(budget).get("suite", self.content["suite"]))

    def tasks(self, budget: str) -> list[str]:
        tasks = self._budget(budget)["tasks"]
        if tasks != ALL:
            return list(tasks)
        return list(reference.atari_games() if self.suite(budget) == "atari" else reference.dmc_tasks())

    def seeds(self, budget: str) -> int:
        return int(self._budget(budget)["seeds"])

    def plans(self, budget: str) -> list[Plan]:
        """The runs it needs, ordered by seed first, so that early results cover all tasks."""
        episodes = self.content.get("episodes", {}).get(budget)
        keep = bool(self.content.get("keep_all_checkpoints"))
        return [
            Plan(Label(budget, task, variant, seed), self.suite(budget), episodes, keep)
            for seed in range(self.seeds(budget))
            for task in self.tasks(budget)
            for variant in self.variants
        ]

    def _budget(self, budget: str) -> Mapping[str, Any]:
        if budget not in self.content["budgets"]:
            raise UnknownExperimentError(f"unknown budget {budget!r}; there are {', '.join(self.content['budgets'])}")
        return self.content["budgets"][budget]


def load(name: str) -> Experiment:
    """An experiment by name.

    Raises:
        UnknownExperimentError: there is none of this name.
    """
    if name not in NAMES:
        raise UnknownExperimentError(f"unknown experiment {name!r}; there are {', '.join(NAMES)}")
    return Experiment(name, _yaml(f"{name}.yaml"))


def load_all() -> list[Experiment]:
    """Every experiment, in the order of the paper."""
    return [load(name) for name in NAMES]


def budgets() -> dict[str, str]:
    """Budget -> the note that goes with its numbers; empty for the paper's own budget."""
    return dict(_yaml(SUITES_FILE)["budgets"])


def variant_label(variant: str) -> str:
    """The name of a variant for people to read."""
    return str(_yaml(SUITES_FILE)["variants"].get(variant, {}).get("label", variant))


def train_spec(plan: Plan) -> dict[str, Any]:
    """Returns a run as an experiment in a file of `rllib train file`."""
    content = _yaml(SUITES_FILE)
    suite, label = content["suites"][plan.suite], plan.label
    settings = suite[label.budget]
    config = copy.deepcopy(settings["config"])
    _merge(config, settings.get("tasks", {}).get(label.task, {}))
    _merge(config, {"training": content["variants"][label.variant].get("config", {}), "seed": label.seed})
    checkpoints = dict(settings["checkpoints"])
    if plan.keep_all_checkpoints:
        checkpoints.pop("num_to_keep")
    spec = {
        "run": "EfficientZero",
        "env": suite["env"],
        "stop": {"training_done": 1},
        "checkpoint_config": checkpoints,
        "config": config,
    }
    return _with_task(spec, label.task)


def _with_task(value: Any, task: str) -> Any:
    """Replaces `{task}` in all strings by the task's name."""
    if isinstance(value, dict):
        return {key: _with_task(inner, task) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_task(inner, task) for inner in value]
    return value.replace("{task}", task) if isinstance(value, str) else value


def _merge(target: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = copy.deepcopy(value)


def _function(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


@functools.cache
def _yaml(name: str) -> dict[str, Any]:
    return yaml.safe_load((HERE / name).read_text(encoding="utf-8"))
