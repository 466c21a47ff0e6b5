"""Measures the whole training loop on real Pong in one process: self-play, replay, reanalysis, learning.

    python -m benchmarks.loop [--example NAME | --network paper|small] [--updates N] [--out FILE]

Runs a tuned example for a few iterations: random steps until the replay can fill a batch, the updates that these
require, then the measured part. Figures per step and per update come from the metrics that the algorithm logs
(`timers/*`, `learners/default_policy/reanalyze/*`) and from clocks around the calls that search, compute or emulate;
the rest of the wall clock time is Python, RLlib and replay ("neither network nor search"). The figures of an iteration
are then computed for the example's own replay ratio, however few updates were measured. Parts of an update are measured
one after another, even if a run on a GPU would make batches ahead; `gpu.py` measures such runs.

On a CPU, an update with a batch of 256 of the paper's network takes minutes. There, batches of 8 and 16 are measured
and extrapolated by a straight line, whose slope is limited to between constant and proportional time, because so short
a line magnifies noise. Such figures have `"extrapolated": true`; for the same reason their search and network are
counted in CPU time of the thread (with one thread), which other work disturbs less than wall time.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from torch._dynamo.utils import counters

from benchmarks import report as reports
from benchmarks.report import Stopwatch
from rllib_efficientzero import EfficientZeroConfig
from rllib_efficientzero import metrics as names
from rllib_efficientzero.actors.batches import InlineBatches
from rllib_efficientzero.cli.experiment import Overrides, load_experiments

EXAMPLES = {"paper": "pong-ez", "small": "pong-ez-cpu"}
EXTRAPOLATION_BATCHES = (8, 16)
MOST_CLOCKED_UPDATES = 200
ITERATIONS_BEFORE = 3
"""Iterations before measuring, in which functions are compiled and graphs recorded at their first calls."""
# Phases of the stopwatch: calls of network or search (which calls the network), and the emulator.
ACT, EMULATE, SEARCH, ENCODE, LEARN = "act", "emulator", "reanalyze_search", "reanalyze_encode", "learn"


def load_config(example: str, overrides: dict[str, Any]) -> EfficientZeroConfig:
    """Reads a tuned example as `rllib train file` would, without evaluation and with everything in one process."""
    file = reports.ROOT / "tuned_examples" / f"{example}.yaml"
    fixed = {"evaluation_interval": None, "num_env_runners": 0, "num_learners": 0, "log_level": "ERROR"}
    (experiment,) = load_experiments(file, Overrides(config=fixed | overrides))
    return EfficientZeroConfig().update_from_dict(experiment.config)


@dataclass
class Plan:
    """Which example is run, with which batch sizes and for how many updates."""

    example: str
    batches: tuple[int, ...]
    updates: int
    overrides: dict[str, Any]
    filled: int = 0
    """Random steps in the replay before measuring. With few, many windows are cut off by the end of the replay."""

    def config(self, batch: int) -> EfficientZeroConfig:
        whole = load_config(self.example, self.overrides)
        fragment = whole.rollout_fragment_length * whole.num_envs_per_env_runner
        measured = {
            "train_batch_size_per_learner": batch,
            "num_steps_sampled_before_learning_starts": max(batch, fragment),
            "replay_ratio": min(whole.replay_ratio, self.updates / fragment),
        }
        return load_config(self.example, self.overrides | measured)


# --- Measuring -------------------------------------------------------------------------------------------------------


def reanalyzer_of(learner: Any) -> Any:
    """The reanalyzer of a Learner's connector."""
    return next(piece.reanalyzer for piece in learner._learner_connector.connectors if hasattr(piece, "reanalyzer"))


def attach_clocks(algo: Any, watch: Stopwatch) -> None:
    """Attaches clocks to every call that searches, computes or emulates; none of these calls contains another."""
    runner, learner = algo.env_runner_group.local_env_runner, algo.learner_group._learner
    reanalyzer = reanalyzer_of(learner)
    module = learner.module["default_policy"].unwrapped()
    watch.wrap_method(runner.module, "_act", ACT)
    watch.wrap_method(runner.env, "step", EMULATE)
    for method in ("initial_inference", "value"):
        watch.wrap_method(module.target_inference_network, method, ENCODE)
    watch.wrap_method(reanalyzer.searcher, "search", SEARCH)
    watch.wrap_method(learner, "_possibly_compiled_update", LEARN)


def begin(plan: Plan, batch: int) -> Any:
    """Returns the algorithm at one batch size, after its self-play has begun to search and all due updates are made."""
    algo = plan.config(batch).build_algo()
    if plan.filled:
        for sample in algo.self_play.sample(plan.filled, budget=plan.filled, num_updates=0):
            algo.local_replay_buffer.add(sample.episodes)
    while algo.num_updates == 0 or algo._updates_owed() >= 1:
        algo.train()
    return algo


def measure(plan: Plan, batch: int) -> dict[str, Any]:
    """Runs the example at one batch size until `plan.updates` updates were timed, part by part."""
    algo = begin(plan, batch)
    cuda = algo.config.has_gpu_in_this_process()
    # On a GPU every clock makes the host wait for the device, where a run would not wait and make batches ahead.
    algo.batches.stop()
    algo.batches = InlineBatches(algo.local_replay_buffer, num_learners=0)
    if cuda:
        algo.train()  # The connector's own network is compiled at its first call.
    watch = Stopwatch(time.perf_counter, torch.cuda.synchronize if cuda else None)
    cpu_watch = Stopwatch(time.thread_time)
    for clocks in (cpu_watch, watch):
        attach_clocks(algo, clocks)
    watch.start()
    cpu_watch.start()
    steps, updates = algo.num_interactions, algo.num_updates
    totals: dict[str, float] = defaultdict(float)
    iterations = 0
    while algo.num_updates - updates < min(plan.updates, MOST_CLOCKED_UPDATES):
        _add_timers(totals, algo)
        iterations += 1
    watch.mark("other")
    cpu_watch.mark("other")
    measured = {
        "batch": batch,
        "iterations": iterations,
        "env_steps": algo.num_interactions - steps,
        "updates": algo.num_updates - updates,
        "phases_s": {phase: round(seconds, 4) for phase, seconds in watch.seconds.items()},
        "phases_thread_cpu_s": {phase: round(seconds, 4) for phase, seconds in cpu_watch.seconds.items()},
        "timers_s": {name: round(seconds, 4) for name, seconds in totals.items()},
        "replay": {"positions": len(algo.local_replay_buffer)}
        | {"bytes_per_step": round(algo.local_replay_buffer.get_metrics()[names.BYTES_PER_STEP], 1)},
        "memory_mb": memory_mb(),
    }
    algo.stop()
    return measured


def measure_as_it_runs(plan: Plan, batch: int) -> dict[str, Any]:
    """Measures whole iterations without clocks: milliseconds of self-play per step, and of all else per update."""
    algo = begin(plan, batch)
    for _ in range(ITERATIONS_BEFORE):
        algo.train()
    compiled, self_play = counters["frames"]["total"], 0.0
    steps, updates, started = algo.num_interactions, algo.num_updates, time.perf_counter()
    while algo.num_updates - updates < plan.updates:
        timers = algo.train()[names.TIMERS]
        self_play += timers[names.SAMPLE_TIMER] + timers[names.REPLAY_ADD_TIMER]
    seconds = time.perf_counter() - started  # every iteration ends with numbers that came from the device
    steps, updates = algo.num_interactions - steps, algo.num_updates - updates
    measured = {
        "compiled_meanwhile": counters["frames"]["total"] - compiled,
        "env_steps": steps,
        "updates": updates,
        "ms_per_env_step": round(1000 * self_play / steps, 3),
        "ms_per_update": round(1000 * (seconds - self_play) / updates, 3),
        "memory_mb": memory_mb(),
    }
    algo.stop()
    return measured


def _add_timers(totals: dict[str, float], algo: Any) -> None:
    """Runs one iteration and adds the times that it logs to `totals`."""
    before, started = algo.num_updates, time.perf_counter()
    result = algo.train()
    totals["wall"] += time.perf_counter() - started
    for name in names.ITERATION_TIMERS:
        totals[name] += result[names.TIMERS].get(name, 0.0)
    if updates := algo.num_updates - before:
        reanalyze = result["learners"]["default_policy"][names.REANALYZE]
        totals["reanalyze"] += updates * reanalyze[names.TARGETS_SECONDS]
        totals["reanalyze_search"] += updates * reanalyze[names.SEARCH_SECONDS]


def memory_mb() -> dict[str, float]:
    """Memory in MB: resident now and at its peak (of this process: Python, torch, Ray's driver), and the GPU's peak."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    memory = {"resident": round(resident / 1e6, 1), "peak": round(peak / 1e6, 1)}
    if torch.cuda.is_available():
        memory["gpu_peak"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return memory


# --- From measurements to figures ------------------------------------------------------------------------------------


WALL, CPU = "phases_s", "phases_thread_cpu_s"


def per_step(run: dict[str, Any], clock: str = WALL) -> dict[str, float]:
    """Milliseconds of self-play per environment step; search and emulator by `clock`, the rest by wall time."""
    timers, phases, scale = run["timers_s"], run[WALL], 1000 / run["env_steps"]
    return {
        "search": scale * run[clock].get(ACT, 0.0),
        "emulator": scale * run[clock].get(EMULATE, 0.0),
        "runner_rest": scale * (timers[names.SAMPLE_TIMER] - phases.get(ACT, 0.0) - phases.get(EMULATE, 0.0)),
        "replay_add": scale * timers[names.REPLAY_ADD_TIMER],
    }


def per_update(run: dict[str, Any], clock: str = WALL) -> dict[str, float]:
    """Milliseconds per update by part, in order; search and network by `clock`, the rest by wall time."""
    timers, phases, scale = run["timers_s"], run[WALL], 1000 / run["updates"]
    in_targets = phases.get(ENCODE, 0.0) + phases.get(SEARCH, 0.0)
    return {
        "sample": scale * timers[names.REPLAY_SAMPLE_TIMER],
        ENCODE: scale * run[clock].get(ENCODE, 0.0),
        SEARCH: scale * run[clock].get(SEARCH, 0.0),
        "reanalyze_rest": scale * (timers["reanalyze"] - in_targets),
        LEARN: scale * run[clock].get(LEARN, 0.0),
        "learner_rest": scale * (timers[names.LEARNER_UPDATE_TIMER] - timers["reanalyze"] - phases.get(LEARN, 0.0)),
        "priorities": scale * timers[names.UPDATE_PRIORITIES_TIMER],
        "sync_weights": scale * timers[names.SYNC_WEIGHTS_TIMER],
    }


def per_iteration_rest(run: dict[str, Any]) -> float:
    """Milliseconds of an iteration's wall clock time outside all timers: RLlib's work around `training_step`."""
    counted = ("wall", "reanalyze", "reanalyze_search")
    timed = sum(seconds for name, seconds in run["timers_s"].items() if name not in counted)
    return 1000 * (run["timers_s"]["wall"] - timed) / run["iterations"]


def line(batch: int, runs: list[dict[str, Any]], clock: str = WALL) -> dict[str, float]:
    """Milliseconds per update at `batch`: measured there, or on the line through the two batches measured."""
    if len(runs) == 1:
        return per_update(runs[0], clock)
    (low, first), (high, last) = ((run["batch"], per_update(run, clock)) for run in runs)
    result = {}
    for name, value in last.items():
        slope = min(max(0.0, (value - first[name]) / (high - low)), value / high)
        result[name] = value + slope * (batch - high)
    return result


def figures(plan: Plan, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The final figures, for the example's own batch size and replay ratio."""
    config = load_config(plan.example, plan.overrides)
    batch, envs = config.train_batch_size_per_learner, config.num_envs_per_env_runner
    steps = config.rollout_fragment_length * envs
    updates = config.replay_ratio * steps
    extrapolated = [run["batch"] for run in runs] != [batch]
    clock = CPU if extrapolated and torch.get_num_threads() == 1 else WALL
    step, update = per_step(runs[-1], clock), line(batch, runs, clock)
    parts = {f"self_play/{name}": steps * ms for name, ms in step.items()}
    parts |= {f"update/{name}": updates * ms for name, ms in update.items()}
    parts["rest"] = per_iteration_rest(runs[-1])
    total = sum(parts.values())
    useful = ("self_play/search", "update/reanalyze_encode", "update/reanalyze_search", "update/learn")
    emulator = parts["self_play/emulator"] / total
    overhead = 1 - sum(parts[name] for name in useful) / total
    return {
        "extrapolated": extrapolated,
        "clock_of_search_and_network": "thread CPU time" if clock == CPU else "wall time",
        "measured_batches": [run["batch"] for run in runs],
        "batch": batch,
        "simulations": config.num_simulations,
        "policy": config.search,
        "environments": envs,
        "replay_ratio": config.replay_ratio,
        "env_steps_per_s_of_self_play": round(1000 / sum(step.values()), 2),
        "ms_per_env_step": _rounded(step),
        "seconds_per_update": round(sum(update.values()) / 1000, 4),
        "ms_per_update": _rounded(update),
        "iteration": {
            "env_steps": steps,
            "updates": round(updates, 2),
            "seconds": round(total / 1000, 4),
            "ms": _rounded(parts),
            "share_neither_network_nor_search": round(overhead, 4),
            "of_which_emulator": round(emulator, 4),
            "share_of_rllib_replay_and_glue": round(overhead - emulator, 4),
        },
        "replay_bytes_per_step": runs[-1]["replay"]["bytes_per_step"],
        "memory_mb": runs[-1]["memory_mb"],
    }


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


def summary(plan: Plan, result: dict[str, Any]) -> dict[str, str]:
    """The figures that have goals, and those that matter to users, as text."""
    how = f", extrapolated from batches {result['measured_batches']}" if result["extrapolated"] else ""
    update, iteration = result["ms_per_update"], result["iteration"]
    reanalyze = sum(update[name] for name in update if name.startswith("reanalyze"))
    learn = update["learn"] + update["learner_rest"]
    rest = result["seconds_per_update"] * 1000 - reanalyze - learn
    return {
        f"{plan.example}: self-play with search": f"{result['env_steps_per_s_of_self_play']:.1f} env steps/s",
        f"{plan.example}: update of batch {result['batch']}": f"{result['seconds_per_update']:.3f} s{how}",
        f"{plan.example}: of it reanalyze / learn / rest": f"{reanalyze:.0f} / {learn:.0f} / {rest:.0f} ms",
        f"{plan.example}: neither network nor search": f"{iteration['share_neither_network_nor_search']:.1%}"
        f" (emulator {iteration['of_which_emulator']:.1%})",
        f"{plan.example}: memory at peak": f"{result['memory_mb']['peak']:.0f} MB",
    }


def start_ray() -> None:
    """Starts a Ray of its own for this process, unless it is connected to one already."""
    if not ray.is_initialized():
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)


def run(plan: Plan) -> dict[str, Any]:
    """Measures all batch sizes of a plan and returns the report."""
    conditions = reports.conditions("torch", "ray", "ale_py") | {"threads": torch.get_num_threads()}
    conditions["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    start_ray()
    runs = [measure(plan, batch) for batch in plan.batches]
    result = figures(plan, runs)
    return {reports.SUMMARY: summary(plan, result), "conditions": conditions, "example": plan.example} | {
        "figures": result,
        "runs": runs,
    }


def make_plan(example: str, updates: int | None = None, overrides: dict[str, Any] | None = None) -> Plan:
    """A plan with the example's own batch size, or smaller ones for the paper's network without a GPU."""
    batch = load_config(example, overrides or {}).train_batch_size_per_learner
    too_slow = example == EXAMPLES["paper"] and not torch.cuda.is_available()
    batches = EXTRAPOLATION_BATCHES if too_slow else (batch,)
    return Plan(example, batches, updates or (4 if too_slow else 60), overrides or {})


def main() -> None:
    """Measures one example and writes one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--example", help="a file of tuned_examples/, without .yaml (default: pong-ez-cpu)")
    which.add_argument("--network", choices=sorted(EXAMPLES), help="paper: pong-ez, small: pong-ez-cpu")
    parser.add_argument("--updates", type=int, help="updates to time (default: 60; 4 of the paper's network on a CPU)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--out", type=Path, default=reports.RESULTS / "loop.json")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    example = args.example or EXAMPLES[args.network or "small"]
    result = run(make_plan(example, args.updates))
    for what, figure in result[reports.SUMMARY].items():
        print(f"{what}: {figure}")
    reports.write(args.out, result)


if __name__ == "__main__":
    main()
