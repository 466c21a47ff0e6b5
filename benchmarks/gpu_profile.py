"""Profiles the GPU and the host's threads during updates as a run makes them, to find what is slow.

    python -m benchmarks.gpu_profile [--example NAME] [--set JSON] [--device cuda|cpu] [--quick] [--out DIR]

Measures, for a tuned example at full size and after all compilation:

- milliseconds of wall time per update, self-play included, without clocks;
- calls of each thread: how many per update, how long they took, and how much CPU time of their thread (including waits
  for the device, which spin);
- an iteration of the device by torch's profiler: how long it was busy, by stream, the gaps in which it was idle, and
  the time of each kernel;
- the Learner's graph and a batch by themselves, kernel by kernel, in `learn.txt` and `batch.txt`.

The first measurement is the one that counts, as clocks and the profiler slow the host down. `--set` overrides keys of
the config, `--quick` does the same with as little work as possible. On a CPU there is no device to profile, and batches
are made ahead only with `--set '{"reanalyze_prefetch": 2}'`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import gpu, loop
from benchmarks import report as reports
from benchmarks.gpu import Work
from rllib_efficientzero import gradient_step
from rllib_efficientzero.mcts import Searcher, parts
from rllib_efficientzero.models import InferenceNetwork
from rllib_efficientzero.replay import PrioritizedReplay
from rllib_efficientzero.targets import reanalyze

MEASURED, CLOCKED = 500, 100
"""Number of updates measured without and with clocks."""
MOST_KERNELS = 40
CLOCKS = {
    (PrioritizedReplay, "sample"): "draw windows",
    (PrioritizedReplay, "update_priorities"): "update priorities",
    (gradient_step.GradientStep, "__call__"): "gradient step",
    (reanalyze.Reanalyzer, "train_batch"): "make a batch",
    (reanalyze, "_assemble"): "- put it together",
    (InferenceNetwork, "initial_inference"): "- evaluate observations",
    (Searcher, "search"): "- search",
    (parts.Part, "begin"): "  - set roots",
}


@contextlib.contextmanager
def clocked(calls: dict[tuple[str, str], list[tuple[float, float]]]) -> Iterator[None]:
    """Within the block, functions in `CLOCKS` add (wall, CPU) seconds of every call to `calls`, by thread and name."""

    def wrapped(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.perf_counter() - wall, time.thread_time() - cpu
                calls[threading.current_thread().name, name].append(spent)

        return call

    before = {key: getattr(*key) for key in CLOCKS}
    for (owner, attribute), function in before.items():
        setattr(owner, attribute, wrapped(function, CLOCKS[owner, attribute]))
    try:
        yield
    finally:
        for (owner, attribute), function in before.items():
            setattr(owner, attribute, function)


def describe_calls(calls: dict[tuple[str, str], list[tuple[float, float]]], updates: int) -> Iterator[str]:
    """A line per thread and function."""
    for (thread, name), spent in sorted(calls.items()):
        wall, cpu = 1000 * np.array(spent).T
        yield (
            f"{thread:16s} {name:26s} {len(wall) / updates:6.2f} per update, mean {wall.mean():7.2f} ms, "
            f"median {np.median(wall):7.2f}, 90 % within {np.quantile(wall, 0.9):7.2f}, CPU {cpu.mean():7.2f}"
        )


def gaps(works: list[Work]) -> list[float]:
    """Lengths, in microseconds, of the intervals in which the device was idle."""
    found, reached = [], works[0].start if works else 0.0
    for work in works:
        if work.start > reached:
            found.append(work.start - reached)
        reached = max(reached, work.end)
    return found


def describe_device(works: list[Work], updates: int) -> Iterator[str]:
    """Lines on how long the device was busy per update, and with what."""
    if not works:
        return
    busy = gpu.covered([(work.start, work.end) for work in works])
    idle = gaps(works)
    long, longest = sum(gap for gap in idle if gap > 100), sorted(idle)[:-9:-1]
    yield (
        f"busy {busy / updates / 1e3:.2f} ms per update, idle {sum(idle) / updates / 1e3:.2f}, of it longer than "
        f"0.1 ms at a time {long / updates / 1e3:.2f}; the longest {', '.join(f'{gap / 1e3:.1f}' for gap in longest)}"
    )
    by_stream, by_name = defaultdict(list), defaultdict(list)
    for work in works:
        by_stream[work.stream].append(work.end - work.start)
        by_name[work.name].append(work.end - work.start)
    for stream, spent in by_stream.items():
        yield f"stream {stream}: {sum(spent) / updates / 1e3:.2f} ms per update, {len(spent) / updates:.0f} kernels"
    for name, spent in sorted(by_name.items(), key=lambda item: -sum(item[1]))[:MOST_KERNELS]:
        yield (
            f"{sum(spent) / updates:9.1f} us per update, {len(spent) / updates:7.1f} times, "
            f"{sum(spent) / len(spent):7.1f} us each: {name[:110]}"
        )


def describe_order(works: list[Work]) -> Iterator[str]:
    """A line per kernel: its start, the gap before it, its duration."""
    reached = first = works[0].start if works else 0.0
    for work in works:
        gap, took = work.start - reached, work.end - work.start
        yield f"{work.start - first:9.1f} us, {gap:6.1f} later, {took:7.1f} us: {work.name[:150]}"
        reached = max(reached, work.end)


def updates_of(algo: Any, updates: int) -> int:
    """Trains for at least so many updates and returns their exact number."""
    before = algo.num_updates
    while algo.num_updates - before < updates:
        algo.train()
    return int(algo.num_updates - before)


def alone(algo: Any) -> tuple[Callable[[], object], Callable[[], object]]:
    """Returns two functions: one makes a batch twice, the other a gradient step twice, with no other thread at work."""
    learner, size = algo.learner_group._learner, algo.config.total_train_batch_size
    (step,) = learner._gradient_steps.values()
    windows = algo.local_replay_buffer.sample(size, beta=1.0)
    reanalyzer = loop.reanalyzer_of(learner)
    network = learner.module["default_policy"].unwrapped().target_inference_network

    def make() -> dict[str, torch.Tensor]:
        return reanalyzer.train_batch(network, windows, num_updates=algo.num_updates)[0]

    for _ in range(4):  # The connector's own network is compiled, and its graphs are recorded.
        batch = make()
    step(batch, 0.0)
    return (lambda: (make(), make())), (lambda: (step(batch, 0.0), step(batch, 0.0)))


def report(example: str, overrides: dict[str, Any], device: str, quick: bool, out: Path) -> Iterator[str]:
    """Yields the report's lines as they are measured."""

    def look_at(run: Callable[[], object]) -> list[Work]:
        if device == "cuda":
            return gpu.profiled(run)[0]
        run()
        return []

    measured, with_clocks = (1, 1) if quick else (MEASURED, CLOCKED)
    warnings = reports.Warnings()
    plan, batch = gpu.plan_of(example, device, measured, quick, overrides)
    algo = loop.begin(plan, batch)
    for _ in range(loop.ITERATIONS_BEFORE):
        algo.train()
    started = time.perf_counter()
    updates = updates_of(algo, measured)
    yield f"{example}: {1000 * (time.perf_counter() - started) / updates:.2f} ms of wall time per update ({updates})"
    yield from (f"WARNING: {line}" for line in warnings.lines)
    calls: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    with clocked(calls):
        updates = updates_of(algo, with_clocks)
    yield from describe_calls(calls, updates)
    before = algo.num_updates
    works = look_at(algo.train)
    yield from describe_device(works, max(1, algo.num_updates - before))
    for name, run in zip(("batch", "learn"), alone(algo), strict=True):
        started = time.perf_counter()
        run()
        yield f"{name}, alone: {500 * (time.perf_counter() - started):.2f} ms"
        works = look_at(run)
        yield from describe_device(works, 2)
        if works:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{name}.txt").write_text("\n".join(describe_order(works)) + "\n")
    algo.stop()


def main() -> int:
    """Returns 1 if a GPU was asked for and there is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--example", default="pong-ez")
    parser.add_argument("--set", type=json.loads, default={}, metavar="JSON", help="overrides of the example's config")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="next to no work: a smoke test")
    parser.add_argument("--out", type=Path, default=Path("gpu-profile"), help="for kernels in order")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU that torch can use. `--device cpu --quick` runs the same code on the CPU.")
        return 1
    loop.start_ray()
    for line in report(args.example, args.set, args.device, args.quick, args.out):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
