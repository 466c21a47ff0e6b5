"""Directories of runs as training leaves them, with chosen scores."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from rllib_efficientzero.analysis.runs import Label, write_label

INGREDIENTS = ("use_consistency", "use_augmentation", "use_value_prefix", "use_off_policy_correction")
OFF = {
    "efficientzero": (),
    "muzero": INGREDIENTS,
    "without-consistency": INGREDIENTS[:1],
    "without-consistency-and-augmentation": INGREDIENTS[:2],
    "without-value-prefix": INGREDIENTS[2:3],
    "without-correction": INGREDIENTS[3:],
}


def write_run(
    root: pathlib.Path,
    label: Label,
    returns: list[float],
    *,
    sticky: list[float] | None = None,
    labelled: bool = True,
    done: bool = True,
    trial: str = "trial",
    training: dict[str, Any] | None = None,
    **config: Any,
) -> pathlib.Path:
    """A run of 100 steps and 120 updates in an hour; returns its directory."""
    above = root / label.budget / f"{label.task}_{label.variant}_seed-{label.seed}"
    directory = above / trial
    directory.mkdir(parents=True)
    if labelled:
        write_label(above, label)
    played = {"game": label.task} | (training or {})
    protocol = {"env": f"ALE/{label.task}-v5", "total_updates": 120, "training": played, "versions": {}}
    (directory / "protocol.json").write_text(json.dumps(protocol))
    updates = 120 if done else 60
    evaluation = {"num_interactions_lifetime": 100, "num_updates_lifetime": updates, "episode_returns": returns}
    (directory / "evaluation.json").write_text(json.dumps({"evaluations": [evaluation]}))
    switches = {name: name not in OFF[label.variant] for name in INGREDIENTS}
    result = {
        "num_updates_lifetime": updates,
        "num_interactions_lifetime": 100,
        "training_done": int(done),
        "time_total_s": 3600.0,
        "hostname": "host",
        "config": {"seed": label.seed, "num_cpus_for_main_process": 2, "num_gpus_per_learner": 1, **switches, **config},
    }
    (directory / "result.json").write_text('{"config": {}, "training_done": 0}\n' + json.dumps(result) + "\n")
    if sticky is not None:
        protocols = {"standard": {"returns": returns}, "sticky": {"returns": sticky}}
        scores = {"num_updates_lifetime": updates, "protocols": protocols}
        (directory / "scores.json").write_text(json.dumps(scores))
    return directory
