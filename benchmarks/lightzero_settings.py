"""Self-play and learning at the settings of LightZero's EfficientZero on Pong, beside figures measured of LightZero.

    python -m benchmarks.lightzero_settings [--updates N] [--out benchmarks/results/lightzero_settings.json]

One process and one thread: 8 environments, 50 simulations, batches of 256, no policy reanalyzed; 4 grey frames of
64x64, 64 channels, latents of 8x8, LSTM of 512 (11.1 M parameters with the consistency heads). Times are CPU time of
the process, all of it: emulator, RLlib, replay. LightZero's own figures (`LIGHTZERO`) are wall time of one thread on
two cores of a 2.5 GHz Xeon that did nothing else; on another processor the ratios say less.

Measured in float32, as LightZero computes, and where the processor has instructions for it again with
`mixed_precision: cpu`, which a user of ours has to ask for.
"""

from __future__ import annotations

import argparse
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
"""HEAD 9f717c80 of 2026-08 with Python 3.11 and torch 2.13, one thread."""
GOALS = {"env_steps_per_s": 2.0, "learner_iterations_per_s": 3.0}
"""Times LightZero's."""
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
    while algo.num_updates == 0 or algo._updates_owed() >= 1:  # random steps, and what they owe
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


def goals(measured: dict[str, Any], precision: str) -> dict[str, Any]:
    """Times LightZero's figures, and whether that is what was asked for."""
    ratios = {name: measured[name] / LIGHTZERO[name] for name in GOALS}
    return {
        f"{precision}: {name} over LightZero's, at least": {
            "measured": round(ratio, 2),
            "goal": goal,
            "met": ratio >= goal,
        }
        for (name, goal), ratio in zip(GOALS.items(), ratios.values(), strict=True)
    }


def summary(measured: dict[str, Any], precision: str) -> dict[str, str]:
    """Both figures beside LightZero's."""
    speed, peer_speed = measured["env_steps_per_s"], LIGHTZERO["env_steps_per_s"]
    iteration, peer_iteration = (1.0 / rates["learner_iterations_per_s"] for rates in (measured, LIGHTZERO))
    self_play = f"{speed:.1f} env steps/s, {speed / peer_speed:.2f} x LightZero's {peer_speed:.1f}"
    update = f"{iteration:.2f} s, {peer_iteration / iteration:.2f} x as fast as LightZero's {peer_iteration:.1f} s"
    return {f"{precision}, self-play, 8 environments": self_play, f"{precision}, update of batch 256": update}


def run(updates: int, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """The whole report."""
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


def main() -> None:
    """Measures and writes one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=4, help="updates to time, with 40 steps for each (default: 4)")
    parser.add_argument("--out", type=Path, default=reports.RESULTS / "lightzero_settings.json")
    args = parser.parse_args()

    torch.set_num_threads(1)
    report = run(args.updates)
    for what, figure in report[reports.SUMMARY].items():
        print(f"{what}: {figure}")
    reports.write(args.out, report)


if __name__ == "__main__":
    main()
