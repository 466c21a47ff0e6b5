"""Measures self-play and learning with the settings of LightZero's EfficientZero on Pong, and compares with LightZero.

    python -m benchmarks.lightzero_settings [--updates N] [--peer PYTHON] [--out FILE]

One process and one thread: 8 environments, 50 simulations, batches of 256, no policy reanalyzed; 4 grey frames of
64x64, 64 channels, latents of 8x8, LSTM of 512 (11.1 M parameters with the consistency heads). Times are CPU time of
the whole process, including emulator, RLlib and replay. LightZero's recorded figures (`LIGHTZERO`) are wall time of one
thread on two otherwise idle cores of a 2.5 GHz Xeon; on another processor the ratios mean less. With `--peer`, which
takes the python of an environment with LightZero (`lightzero_peer.py` says how to make one), LightZero itself is
measured before and after ours, also in CPU time, and the report adds the ratios to the mean of both.

Measured in float32, as LightZero computes, and again with `mixed_precision: cpu`, which users have to set, if the
processor has instructions for it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ray
import torch

from benchmarks import report as reports
from benchmarks.loop import load_config
from benchmarks.report import Stopwatch
from rllib_efficientzero.models.precision import ON_CPUS, cpu_has_bfloat16

LIGHTZERO = {"env_steps_per_s": 11.8, "learner_iterations_per_s": 1 / 14.7}
"""Recorded figures of LightZero at HEAD 9f717c80 of 2026-08 with Python 3.11 and torch 2.13, one thread."""
GOALS = {"env_steps_per_s": 2.0, "learner_iterations_per_s": 3.0}
"""Goals as multiples of LightZero's figures."""
ENVIRONMENTS, FRAGMENT = 8, 5
SETTINGS: dict[str, Any] = {
    "env_config": {"screen_size": 64, "grayscale": True},
    "model_config": {"latent_side": 8},
    "search": "puct",
    "num_simulations": 50,
    "train_batch_size_per_learner": 256,
    "reanalyze_ratio": 0.0,
    "num_envs_per_env_runner": ENVIRONMENTS,
    "rollout_fragment_length": FRAGMENT,
}
FLOAT32, BFLOAT16 = "float32", "bfloat16"
SELF_PLAY, TARGETS, LEARN, REST = "self_play", "targets", "learn", "rest"
PEER_SCRIPT = Path(__file__).with_name("lightzero_peer.py")
PEER_FIGURES = ("env_steps_per_s", "seconds_per_iteration", "train_s", "targets_s")
PEER_TIMEOUT_S = 3600
PEER_ERROR_LINES = 5
HERE = "here"
"""Marks goals and summary lines that compare with LightZero as measured on this machine, in this run."""


class PeerError(RuntimeError):
    """LightZero could not be measured; the message says why."""


def measure_peer(python: Path, updates: int) -> dict[str, Any]:
    """Runs `lightzero_peer.py` with `python`, for as many steps and iterations as ours, and returns its figures."""
    arguments = ("--steps", str(updates * ENVIRONMENTS * FRAGMENT), "--iterations", str(updates))
    # -I: modules beside the script (`replay`, `tree`) must not hide modules that LightZero imports.
    command = [str(python), "-I", str(PEER_SCRIPT), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        run = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PEER_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"LightZero was not measured, since {python} did not run through: {error}") from error
    if run.returncode != 0:
        last = "\n".join(run.stderr.splitlines()[-PEER_ERROR_LINES:])
        raise PeerError(
            f"LightZero was not measured: {PEER_SCRIPT.name}, run by {python}, ended with exit code {run.returncode}. "
            f"Its docstring says how to install LightZero. Its last lines were:\n{last}"
        )
    try:
        found = json.loads(run.stdout.splitlines()[-1])
        return {"version": str(found["version"])} | found | {name: float(found[name]) for name in PEER_FIGURES}
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise PeerError(
            f"LightZero was not measured: the last line that {PEER_SCRIPT.name} printed should be a JSON object with "
            f"version, {', '.join(PEER_FIGURES)}, but reading it failed: {error!r}"
        ) from error


def peer_report(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The report on LightZero: both runs, and their mean, which includes rates under the names of `LIGHTZERO`."""
    mean = {name: sum(run[name] for run in runs) / len(runs) for name in PEER_FIGURES}
    rates = {
        "env_steps_per_s": mean["env_steps_per_s"],
        "learner_iterations_per_s": 1.0 / mean["seconds_per_iteration"],
    }
    return {"version": runs[0]["version"], "clock": "CPU time of the process", "runs": runs, "mean": mean | rates}


def measure(updates: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds of self-play per environment step, and of everything else per update, over `updates` updates."""
    steps_per_iteration = ENVIRONMENTS * FRAGMENT
    settings = SETTINGS | overrides
    one_per_iteration = {
        "replay_ratio": 1.0 / steps_per_iteration,
        "num_steps_sampled_before_learning_starts": max(settings["train_batch_size_per_learner"], steps_per_iteration),
        "total_updates": None,
    }
    algo = load_config("pong-ez", settings | one_per_iteration).build_algo()
    watch = Stopwatch(time.process_time)
    learner = algo.learner_group._learner
    watch.wrap_method(algo, "_sample", SELF_PLAY, before=REST)
    watch.wrap_method(learner, "_learner_connector", TARGETS, before=REST)
    watch.wrap_method(learner, "_possibly_compiled_update", LEARN, before=REST)
    while algo.num_updates == 0 or algo._updates_owed() >= 1:  # random steps, and the updates that they require
        algo.train()
    watch.start()
    first_step, first_update = algo.num_interactions, algo.num_updates
    while algo.num_updates - first_update < updates:
        algo.train()
    watch.mark(REST)
    steps, updates = algo.num_interactions - first_step, algo.num_updates - first_update
    module = learner.module["default_policy"].unwrapped()
    parameters = sum(p.numel() for name, p in module.named_parameters() if not name.startswith("target_network."))
    algo.stop()
    seconds = dict(watch.seconds)
    per_update = {name: value / updates for name, value in seconds.items() if name != SELF_PLAY}
    return {
        "env_steps": steps,
        "updates": updates,
        "parameters": parameters,
        "env_steps_per_s": steps / seconds[SELF_PLAY],
        "learner_iterations_per_s": 1.0 / sum(per_update.values()),
        "seconds_per_update": {name: round(value, 4) for name, value in per_update.items()},
    }


def goals(measured: dict[str, Any], precision: str, peer: dict[str, Any] | None = None) -> dict[str, Any]:
    """The figures as multiples of LightZero's, recorded or (`peer`) measured here, and whether they meet the goals."""
    ratios = {name: measured[name] / (peer or LIGHTZERO)[name] for name in GOALS}
    whose = f"LightZero's {HERE}" if peer else "LightZero's"
    return {
        f"{precision}: {name} over {whose}, at least": {
            "measured": round(ratio, 2),
            "goal": goal,
            "met": ratio >= goal,
        }
        for (name, goal), ratio in zip(GOALS.items(), ratios.values(), strict=True)
    }


def summary(measured: dict[str, Any], precision: str, peer: dict[str, Any] | None = None) -> dict[str, str]:
    """Lines that compare both figures with LightZero's, recorded or (`peer`) measured here."""
    theirs, where = (peer, f", beside LightZero {HERE}") if peer else (LIGHTZERO, "")
    speed, peer_speed = measured["env_steps_per_s"], theirs["env_steps_per_s"]
    iteration, peer_iteration = (1.0 / rates["learner_iterations_per_s"] for rates in (measured, theirs))
    self_play = f"{speed:.1f} env steps/s, {speed / peer_speed:.2f} x LightZero's {peer_speed:.1f}"
    update = f"{iteration:.2f} s, {peer_iteration / iteration:.2f} x as fast as LightZero's {peer_iteration:.1f} s"
    return {
        f"{precision}, self-play, 8 environments{where}": self_play,
        f"{precision}, update of batch 256{where}": update,
    }


def run_beside(peer: Path, updates: int, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """The whole report, with LightZero measured before and after ours; if that fails, `["peer"]["error"]` says why."""
    try:
        first = measure_peer(peer, updates)
    except PeerError as error:
        return run(updates, overrides) | {"peer": {"error": str(error)}}
    report = run(updates, overrides)
    try:
        found = peer_report([first, measure_peer(peer, updates)])
    except PeerError as error:
        return report | {"peer": {"error": str(error), "runs": [first]}}
    for name, measured in report["measured"].items():
        report[reports.SUMMARY] |= summary(measured, name, found["mean"])
        report["goals"] |= goals(measured, name, found["mean"])
    return report | {"peer": found}


def run(updates: int, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """Measures this package and returns the report."""
    conditions = reports.conditions("torch", "ray", "ale_py") | {"threads": torch.get_num_threads()}
    conditions["clock"] = "CPU time of the process"
    if not ray.is_initialized():
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    precisions = {FLOAT32: False} | ({BFLOAT16: ON_CPUS} if cpu_has_bfloat16() else {})
    measured = {
        name: measure(updates, {"mixed_precision": enabled} | (overrides or {})) for name, enabled in precisions.items()
    }
    return {
        reports.SUMMARY: {key: line for name, found in measured.items() for key, line in summary(found, name).items()},
        "conditions": conditions,
        "settings": SETTINGS,
        "lightzero": LIGHTZERO,
        "measured": measured,
        "goals": {key: goal for name, found in measured.items() for key, goal in goals(found, name).items()},
    }


def main() -> int:
    """Measures and writes one JSON file; the exit status is 1 if LightZero was to be measured but could not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=4, help="updates to time, with 40 steps for each (default: 4)")
    parser.add_argument("--peer", type=Path, metavar="PYTHON", help="a python that has LightZero, measured beside ours")
    parser.add_argument("--out", type=Path, default=reports.RESULTS / "lightzero_settings.json")
    args = parser.parse_args()

    torch.set_num_threads(1)
    report = run_beside(args.peer, args.updates) if args.peer else run(args.updates)
    for what, figure in report[reports.SUMMARY].items():
        print(f"{what}: {figure}")
    reports.write(args.out, report)
    if error := report.get("peer", {}).get("error"):
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
