"""The published numbers, from `data/` (whose README says where they come from)."""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

DATA = resources.files("rllib_efficientzero.analysis") / "data"
ATARI_METHODS = ("simple", "otrainbow", "curl", "drq", "spr", "muzero", "efficientzero")
"""Columns of Table 1, in its order."""
DMC_METHODS = {
    "curl": "CURL",
    "dreamer": "Dreamer",
    "muzero": "MuZero",
    "sac_ae": "SAC-AE",
    "pixel_sac": "Pixel SAC",
    "state_sac": "State SAC",
    "efficientzero": "EfficientZero",
}
"""Column of Table 2 -> its heading."""


@dataclass(frozen=True)
class Game:
    """One row of Table 1."""

    name: str
    random: float
    human: float
    scores: Mapping[str, float]
    """method -> raw score"""

    def normalise(self, score: Any) -> Any:
        """Returns a score (number or array) as human-normalised: 0 is random play, 1 a human."""
        return (score - self.random) / (self.human - self.random)


@dataclass(frozen=True)
class Published:
    """Aggregates as a paper prints them; None for one that it does not print."""

    label: str
    mean: float
    median: float
    iqm: float | None
    citation: str


@functools.cache
def atari_games() -> dict[str, Game]:
    """Name -> game, the 26 of Atari 100k in the table's order."""
    return {
        row["game"]: Game(
            row["game"], float(row["random"]), float(row["human"]), {name: float(row[name]) for name in ATARI_METHODS}
        )
        for row in rows("atari100k.csv")
    }


def published_atari() -> dict[str, Published]:
    """Column of Table 1 -> its printed aggregates."""
    return {row["column"]: _published(row, row["label"]) for row in rows("atari100k_published.csv")}


def later_methods() -> list[Published]:
    """Methods published after the paper (and DQN, which it cites), by year."""
    return [_published(row, f"{row['method']} ({row['year']})") for row in rows("atari100k_later.csv")]


def published_ablations() -> dict[str, Published]:
    """Variant -> aggregates of Table 3."""
    return {row["variant"]: _published(row, row["variant"]) for row in rows("ablations_published.csv")}


def dmc_tasks() -> dict[str, dict[str, Any]]:
    """`cartpole-swingup` -> its row of Table 2: `task` (printed name), `<method>` and `<method>_std`."""
    return {
        f"{row['domain']}-{row['dmc_task']}": {key: _number(value) for key, value in row.items()}
        for row in rows("dmc100k.csv")
    }


def published_value_errors() -> dict[int, tuple[float, float]]:
    """Stage (steps) -> L1 error of value targets without and with the off-policy correction (Table 5, UpNDown)."""
    return {
        int(row["stage"]): (float(row["without"]), float(row["with"])) for row in rows("value_targets_published.csv")
    }


def paper_settings() -> list[dict[str, Any]]:
    """Rows of Table 6: `name`, `paper` (as printed), `key` of the config, and the `value` it should have."""
    return yaml.safe_load((DATA / "settings.yaml").read_text(encoding="utf-8"))


def rows(name: str) -> list[dict[str, str]]:
    """Reads a table of `data/`: one dict per row."""
    return list(csv.DictReader((DATA / name).read_text(encoding="utf-8").splitlines()))


def _published(row: Mapping[str, str], label: str) -> Published:
    iqm = float(row["iqm"]) if row.get("iqm") else None
    return Published(label, float(row["mean"]), float(row["median"]), iqm, row["citation"])


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
