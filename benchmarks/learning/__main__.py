"""Learning curves: `python -m benchmarks.learning EXAMPLE [--seeds 0 1 2] [--variant NAME] [--storage-path DIR] ...`.

Trains `tuned_examples/EXAMPLE.yaml` through the `rllib` command, one seed after the other, and keeps every evaluation
with its per-episode scores, the config, the commit, the hardware and the wall clock in `<out-dir>/<name>.json`, and a
plot beside it. Variants are the paper's ablations, and EfficientZero V2's sampled actions in the place of DMControl's
discretised ones. With `--storage-path` the runs are kept, and the same command again goes on with them where they were
interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "without-consistency": {"use_consistency": False},
    "without-value-prefix": {"use_value_prefix": False},
    "without-correction": {"use_off_policy_correction": False},
    "sampled-actions": {
        "search": "gumbel",
        "num_sampled_actions": 8,
        "entropy_loss_coeff": 0.05,
        "environment": {"env_config": {"bins_per_dimension": None}},
    },
}


def train(example: str, seed: int, config: dict[str, Any], storage: pathlib.Path) -> None:
    """Run one seed to its end, or go on with it where `storage` already has a part of it."""
    command = [sys.executable, "-m", "rllib_efficientzero", "train", "file", f"tuned_examples/{example}.yaml"]
    command += ["--storage-path", str(storage)]
    if any(storage.glob("*/*/result.json")):
        command += ["--resume"]
    else:
        command += ["--seed", str(seed), "--config", json.dumps(config)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


def collect(storage: pathlib.Path) -> dict[str, Any]:
    """Evaluations and training curve of the run below `storage`."""
    (evaluation_file,) = storage.glob("*/*/evaluation.json")
    evaluation = json.loads(evaluation_file.read_text())
    rows = [json.loads(line) for line in (evaluation_file.parent / "result.json").read_text().splitlines()]
    config = rows[-1]["config"]
    for record in evaluation["evaluations"]:
        updates = record["num_updates_lifetime"]
        # The row of the evaluation, for its time since the run began.
        row = next(row for row in rows if row["num_updates_lifetime"] >= updates)
        record["seconds"] = row["time_total_s"]
        record["mean_return"] = sum(record["episode_returns"]) / len(record["episode_returns"])
    plain = {key: value for key, value in config.items() if isinstance(value, str | int | float | bool | list | dict)}
    return evaluation | {"config": plain, "wall_clock_s": rows[-1]["time_total_s"]}


def environment() -> dict[str, Any]:
    """Where the figures come from."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    cpu = next((line for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    return {"commit": commit.stdout.strip(), "cpu": cpu.split(":")[-1].strip(), "cores": os.cpu_count()}


def plot(name: str, results: dict[str, Any], path: pathlib.Path, beside: Mapping[str, dict[str, Any]]) -> None:
    """Mean evaluation return against environment steps, one line per seed; `beside` are others' results, dashed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))

    def draw(run: dict[str, Any], **style: Any) -> None:
        records = run["evaluations"]
        steps = [record["num_interactions_lifetime"] for record in records]
        axes.plot(steps, [record["mean_return"] for record in records], marker=".", **style)

    for seed, run in results["seeds"].items():
        draw(run, label=f"seed {seed}")
    for other, found in beside.items():
        for seed, run in found["seeds"].items():
            draw(run, label=f"{other}, seed {seed}", linestyle="--")
    protocol = next(iter(results["seeds"].values()))["protocol"]
    repeat = protocol.get("total_raw_env_steps", 0) // protocol["total_env_steps"]
    label = f"decisions, of {repeat} environment steps each" if repeat > 1 else "environment steps"
    axes.set(xlabel=label, ylabel="evaluation return", title=name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _lines(path: str) -> list[str]:
    file = pathlib.Path(path)
    return file.read_text().splitlines() if file.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("example")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variant", choices=VARIANTS, default="full")
    parser.add_argument("--storage-path", type=pathlib.Path, help="keep the runs there; without it they are temporary")
    parser.add_argument("--beside", nargs="+", default=[], metavar="NAME", help="draw these results of --out-dir too")
    parser.add_argument("--out-dir", type=pathlib.Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    name = arguments.example if arguments.variant == "full" else f"{arguments.example}-{arguments.variant}"
    beside = {other: json.loads((arguments.out_dir / f"{other}.json").read_text()) for other in arguments.beside}
    results: dict[str, Any] = {"example": arguments.example, "variant": arguments.variant, **environment(), "seeds": {}}
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as temporary:
            storage = (arguments.storage_path or pathlib.Path(temporary)).resolve() / f"{name}-seed-{seed}"
            train(arguments.example, seed, VARIANTS[arguments.variant], storage)
            results["seeds"][str(seed)] = collect(storage)
        # After every seed, so that an interrupted series keeps what it has.
        (arguments.out_dir / f"{name}.json").write_text(json.dumps(results, indent=1))
        plot(name, results, arguments.out_dir / f"{name}.png", beside)


if __name__ == "__main__":
    main()
