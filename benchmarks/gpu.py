"""The speed of the search, and of whole updates, on a GPU.

    python -m benchmarks.gpu [--device cuda|cpu] [--quick] [--updates N] [--out benchmarks/results/gpu.json]

Searches: the paper's network for Atari with 18 actions, "puct" with 50 and "gumbel" with 16 simulations, from 4, 256
and 1536 roots, as acting and reanalysis run them (bfloat16, fused kernels, CUDA graphs, trees on the GPU), and with
trees on the host, as without Triton: the roots are searched as two halves in turns, and the host's time is split into
its work on the trees, launching work of the device, and waiting for it. In another run, torch's profiler measures for
how much of the time the device was busy, and how long with trees, with copies between device and host, and with the
network. "no graph" is the search with trees on the host, in one part and without CUDA graphs. All times are wall time.

Updates: `pong-ez` and `pong-ezv2` at full size in `benchmarks.loop`, 500 updates without clocks, as a run makes them.
The minutes of a run of 100k environment steps are extrapolated from these, without evaluation, the first random steps
and compilation. `pong-ezv2` is measured again in its state after `mixed_start_updates`, when values of old positions
come from their searches; all positions count as old. Then 200 updates of each are measured with clocks, for which the
host waits between the parts, and no batch is made ahead. The file is written after each of these measurements, in case
the time on the GPU ends.

`--quick` does the same with as little work as possible, as a smoke test; on a CPU it needs `--device cpu`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import loop
from benchmarks import report as reports
from benchmarks.report import Stopwatch
from benchmarks.search import make_network
from rllib_efficientzero.mcts import SearchConfig, Searcher
from rllib_efficientzero.mcts.parts import DevicePart, Layout, halves, layout_for, whole
from rllib_efficientzero.models import InferenceNetwork

NUM_ACTIONS = 18
ROOTS = (4, 256, 1536)
SEARCHES = {"puct": 50, "gumbel": 16}
EXAMPLES = {"pong-ez": 60.0, "pong-ezv2": 25.0}
"""Example -> the goal for the minutes of its run."""
LATE = {"pong-ezv2": {"mixed_start_updates": 0, "mixed_recent_steps": 0}}
"""Example -> settings with which its updates are like those after its `mixed_start_updates`."""
UPDATE_GOAL_MS = 30.0
QUICK_NETWORK = {
    "channels": 4,
    "reduced_channels": 2,
    "lstm_hidden": 8,
    "support_size": 5,
    "projector_hidden": 8,
    "projector_out": 8,
    "predictor_hidden": 8,
}
QUICK = {
    "model_config": QUICK_NETWORK,
    "num_simulations": 2,
    "train_batch_size_per_learner": 8,
    "env_config": {"screen_size": 32, "grayscale": True},
    "num_envs_per_env_runner": 2,
}
TREE, LAUNCH, WAIT, OTHER = "tree", "launch", "wait", "other"
TREE_KERNELS = ("begin", "puct_select", "gumbel_select", "expand_and_backup")


# --- Searches --------------------------------------------------------------------------------------------------------


def search_subject(network: Any, planes: Tensor, searcher: Searcher) -> Callable[[], object]:
    """Returns a function that runs a search from roots evaluated beforehand."""
    root = network.initial_inference(planes)

    def run() -> object:
        return searcher.search(network, root, rng=np.random.default_rng(0), explore=True)

    return run


def watch_parts(searcher: Searcher, watch: Stopwatch) -> None:
    """Attaches clocks to the host's work in a searcher, which must have run before."""
    ((*parts,),) = searcher._parts.values()
    for part in parts:
        watch.wrap_method(part, "launch", LAUNCH)
        if isinstance(part, DevicePart):
            watch.wrap_method(part.tree, "_results", WAIT)
        else:
            watch.wrap_method(part, "finish", TREE)
            watch.wrap_method(part.evaluator, "launch", LAUNCH, before=TREE)
            watch.wrap_method(part.evaluator, "collect", WAIT)


class Work(NamedTuple):
    """A kernel or copy that the device executed."""

    name: str
    start: float  # microseconds
    end: float
    stream: int


def device_times(run: Callable[[], object], device: str) -> dict[str, float]:
    """Profiles one run and returns its `device_summary`; empty on a CPU."""
    if device != "cuda":
        return {}
    works, wall = profiled(run)
    return device_summary([(work.name, work.start, work.end) for work in works], wall)


def profiled(run: Callable[[], object]) -> tuple[list[Work], float]:
    """Runs a function under torch's profiler. Returns the GPU's work by start time, and the seconds of the run."""
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        wall = time.perf_counter() - started
    events = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    works = [
        Work(event.name, event.time_range.start, event.time_range.end, event.device_resource_id) for event in events
    ]
    return sorted(works, key=lambda work: work.start), wall


def device_summary(spans: list[tuple[str, float, float]], wall: float) -> dict[str, float]:
    """Milliseconds that the device was busy in total, and with copies (to, from and within it), with trees, and with
    everything else, which is the network.

    Args:
        spans: name, start and end of all its work, in microseconds.
        wall: seconds of the run.
    """
    kinds: dict[str, list[tuple[float, float]]] = {"copies_ms": [], "trees_ms": [], "network_ms": []}
    for name, start, end in spans:
        is_tree = any(kernel in name for kernel in TREE_KERNELS)
        kinds["copies_ms" if "memcpy" in name.lower() else "trees_ms" if is_tree else "network_ms"].append((start, end))
    busy = covered([span for spans_of_kind in kinds.values() for span in spans_of_kind]) / 1e3
    parts = {kind: covered(spans_of_kind) / 1e3 for kind, spans_of_kind in kinds.items()}
    return {"wall_ms": 1e3 * wall, "busy_ms": busy, **parts, "busy_share": busy / (1e3 * wall)}


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    covered, reached = 0.0, -float("inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered


def measure_search(
    network: InferenceNetwork, planes: Tensor, policy: str, num_simulations: int, repetitions: int
) -> dict[str, Any]:
    """One row: a search of as many roots as there are planes."""
    device = planes.device.type
    config = SearchConfig(policy=policy, num_simulations=num_simulations)
    on_host = Searcher(config, Layout(halves))
    searcher = (
        Searcher(config, layout_for(planes.device, NUM_ACTIONS, num_simulations)) if device == "cuda" else on_host
    )
    bare = SimpleNamespace(initial_inference=network.initial_inference, recurrent_inference=network.recurrent_inference)
    subjects = {
        "search": search_subject(network, planes, searcher),
        "on_host": search_subject(network, planes, on_host),
        "plain": search_subject(bare, planes, Searcher(config, Layout(whole))),
    }
    for subject in subjects.values():
        subject()  # allocates, records
    turns = reports.time_in_turns(
        {name: (subject, time.perf_counter) for name, subject in subjects.items()}, repetitions, at_least=repetitions
    )
    on_device = device_times(subjects["search"], device)
    host_ms = {}
    for name, watched in (("search", searcher), ("on_host", on_host)):
        watch = Stopwatch(time.perf_counter)
        watch_parts(watched, watch)
        watch.start()
        subjects[name]()
        watch.mark(OTHER)
        host_ms[name] = {phase: round(1000 * watch.seconds[phase], 3) for phase in (TREE, LAUNCH, WAIT, OTHER)}
    milliseconds = statistics.median(turns["search"])
    return {
        "policy": policy,
        "num_roots": len(planes),
        "num_simulations": num_simulations,
        "search_ms": reports.spread(turns["search"]),
        "trees_on_host_ms": reports.spread(turns["on_host"]),
        "no_graph_ms": reports.spread(turns["plain"]),
        "simulations_per_s": round(1000 * len(planes) * num_simulations / milliseconds),
        "host_ms": host_ms["search"],
        "host_ms_with_trees": host_ms["on_host"],
        "device": {name: round(value, 3) for name, value in on_device.items()},
    }


def measure_searches(device: str, quick: bool) -> list[dict[str, Any]]:
    """Measures all rows of the grid; the quick grid has the small network and few roots."""
    plain, input_shape = make_network("small" if quick else "paper", NUM_ACTIONS)
    network = InferenceNetwork(plain.to(device), mixed_precision=True, fused=True)
    rows = []
    for roots in (4, 80) if quick else ROOTS:
        planes = torch.rand(roots, *input_shape, generator=torch.Generator().manual_seed(0)).to(device)
        for policy, simulations in SEARCHES.items():
            rows.append(measure_search(network, planes, policy, 2 if quick else simulations, 2 if quick else 10))
    return rows


# --- Updates ---------------------------------------------------------------------------------------------------------


def measure_updates(example: str, device: str, updates: int, quick: bool) -> dict[str, Any]:
    """Measures whole iterations of an example as a run makes them, and extrapolates the time of a run."""
    plan, batch = plan_of(example, device, updates, quick)
    measured = loop.measure_as_it_runs(plan, batch)
    config, ms_per_update = plan.config(batch), measured["ms_per_update"]
    total = config.updates_at_end()
    ms = config.total_env_steps * measured["ms_per_env_step"] + total * ms_per_update
    if example in LATE:
        late_plan, _ = plan_of(example, device, updates, quick, LATE[example])
        late = measured["late"] = loop.measure_as_it_runs(late_plan, batch)
        ms += max(0, total - config.mixed_start_updates) * (late["ms_per_update"] - ms_per_update)
    return {"example": example, "batch": batch, **measured, "minutes_of_a_run_extrapolated": round(ms / 60_000, 2)}


def measure_parts(example: str, device: str, updates: int, quick: bool) -> dict[str, dict[str, float]]:
    """Milliseconds of the parts of a step and of an update, which run one after another."""
    plan, batch = plan_of(example, device, updates, quick)
    figures = loop.figures(plan, [loop.measure(plan, batch)])
    return {key: figures[key] for key in ("ms_per_env_step", "ms_per_update")}


def plan_of(
    example: str, device: str, updates: int, quick: bool, settings: Mapping[str, Any] | None = None
) -> tuple[loop.Plan, int]:
    """A plan with the example's own batch size, and as many steps in the replay as when a run begins to learn."""
    overrides: dict[str, Any] = {"num_gpus_per_learner": int(device == "cuda")} | (QUICK if quick else {})
    overrides |= settings or {}
    config = loop.load_config(example, overrides)
    batch, filled = config.train_batch_size_per_learner, config.num_steps_sampled_before_learning_starts
    return loop.Plan(example, (batch,), updates, overrides, 0 if quick else filled), batch


# --- Report ----------------------------------------------------------------------------------------------------------


def goals(updates: list[dict[str, Any]], device: str, quick: bool) -> dict[str, Any]:
    """The goals for a GPU: figure, limit and whether it was met."""
    if device != "cuda" or quick:
        return {}
    results = {}
    for row in updates:
        minutes, goal = row["minutes_of_a_run_extrapolated"], EXAMPLES[row["example"]]
        name = f"{row['example']}: minutes of a run, extrapolated, at most"
        results[name] = {"measured": minutes, "goal": goal, "met": bool(minutes <= goal)}
        if row["example"] == "pong-ez":
            update = row["ms_per_update"]
            results["pong-ez: ms of a full update, at most"] = {
                "measured": update, "goal": UPDATE_GOAL_MS, "met": bool(update <= UPDATE_GOAL_MS)
            }  # fmt: skip
    return results


def summary(
    searches: list[dict[str, Any]], updates: list[dict[str, Any]], device: str, warnings: list[str]
) -> dict[str, str]:
    """A line per search and per example, and one per warning, which means that something did not run as it should."""
    lines = {f"WARNING {number}": warning for number, warning in enumerate(warnings, start=1)}
    for row in searches:
        busy = "no GPU"
        if device_row := row["device"]:
            parts = ", ".join(f"{kind} {device_row[f'{kind}_ms']:.1f} ms" for kind in ("trees", "copies", "network"))
            busy = f"{device_row['busy_share']:.0%} busy ({parts})"
        host = " ".join(f"{name} {row['host_ms'][name]:.1f}" for name in (TREE, LAUNCH, WAIT, OTHER))
        what = "{policy}, B={num_roots} N={num_simulations}".format(**row)
        ms, on_host, plain = (row[key]["median"] for key in ("search_ms", "trees_on_host_ms", "no_graph_ms"))
        speed = f"{row['simulations_per_s']:,} simulations/s"
        lines[what] = (
            f"{speed}, {busy}, {ms:.1f} ms (host: {host}); trees on the host: {on_host:.1f} ms, no graph: {plain:.1f}"
        )
    for row in updates:
        late = f" ({row['late']['ms_per_update']:.1f} late in a run)" if "late" in row else ""
        line = (
            f"{row['ms_per_update']:.1f} ms{late}, {row['ms_per_env_step']:.1f} ms of self-play per step; a run "
            f"{row['minutes_of_a_run_extrapolated']:.0f} minutes, extrapolated from {row['updates']} updates"
        )
        if compiled := row["compiled_meanwhile"] + row.get("late", {}).get("compiled_meanwhile", 0):
            line += f"; TOO SLOW: {compiled} functions were compiled meanwhile"
        if parts := row.get("parts"):
            of_update = parts["ms_per_update"]
            named = ", ".join(f"{name} {ms:.1f}" for name, ms in of_update.items())
            line += f"; with clocks {sum(of_update.values()):.1f} ms ({named})"
        lines[f"{row['example']}: update of batch {row['batch']}"] = line
    if device != "cuda":
        lines["device"] = "a CPU: none of these figures says anything of a GPU"
    return lines


def run(device: str, *, quick: bool, updates: int) -> Iterator[dict[str, Any]]:
    """Yields the report after each measurement; only the last one is complete."""
    conditions = reports.conditions("torch", "ray", "ale_py") | {"device": device, "quick": quick}
    if device == "cuda":
        conditions["gpu"] = torch.cuda.get_device_name()
    measured: list[dict[str, Any]] = []
    warnings = reports.Warnings().lines

    def report(searches: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            reports.SUMMARY: summary(searches, measured, device, warnings),
            "conditions": conditions,
            "searches": searches,
            "updates": measured,
            "goals": goals(measured, device, quick),
        }

    loop.start_ray()
    for example in EXAMPLES:
        measured.append(measure_updates(example, device, updates, quick))
        yield report([])
    for row in measured:
        row["parts"] = measure_parts(row["example"], device, updates, quick)
        yield report([])
    yield report(measure_searches(device, quick))


def main() -> int:
    """Returns 1 if a GPU was asked for and there is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="next to no work: a smoke test")
    parser.add_argument("--updates", type=int, help="updates to time per example (default: 500; 1 with --quick)")
    parser.add_argument("--out", type=Path, default=reports.RESULTS / "gpu.json")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU that torch can use. `--device cpu --quick` runs the same code on the CPU.")
        return 1
    for report in run(args.device, quick=args.quick, updates=args.updates or (1 if args.quick else 500)):
        reports.write(args.out, report)
    for what, figure in report[reports.SUMMARY].items():
        print(f"{what}: {figure}")
    for name, result in report["goals"].items():
        print(f"{'met' if result['met'] else 'MISSED'}: {name} {result['goal']}: {result['measured']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
