"""Measures the search tree alone: CPU time per simulation over a grid of shapes, beside mctx if that is installed.

    python -m benchmarks.tree [--full] [--out benchmarks/results/tree.json]

A search is one reset, N times (select, expand_and_backup), and reading all results. The network is a pool of arrays
drawn before the clock starts, so that only the tree and its Python binding are timed; mctx looks outputs up in a table.
The root's noise is drawn beforehand, too, except for the subjects named "drawing noise", with which mctx is compared,
as it draws its own. Times are CPU time on one core, which other work on the machine disturbs less than wall time: of
the calling thread for the tree, and of the process for mctx, whose work runs on threads of XLA. mctx is compiled,
pinned to one core and limited to one thread, which takes less CPU time than its defaults. Subjects that are compared
take turns, repetition by repetition; the first repetition, in which mctx is compiled, is dropped.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rllib_efficientzero._ctree import BatchedTree

from benchmarks import report as reports
from benchmarks.report import Subject, time_in_turns

DISCOUNT, POOL, TABLE = 0.997, 8, 1021


class Shape(NamedTuple):
    num_roots: int
    num_actions: int
    num_simulations: int


Grid = list[list[Shape]]
"""Lists of shapes; those in one list are measured in turns."""

DEFAULT_GRID: Grid = [
    [Shape(1, 18, 50)],
    [Shape(64, 6, 50)],
    [Shape(256, 4, 50)],
    [Shape(256, 18, n) for n in (16, 50, 200)],
]
FULL_GRID: Grid = [
    [Shape(b, a, n) for n in (16, 50, 200)] for b, a in itertools.product((1, 16, 64, 256, 1024), (4, 6, 18, 125))
]
MCTX_SHAPES = [Shape(1, 18, 50), Shape(64, 6, 50), Shape(256, 18, 16), Shape(256, 18, 50)]
MCTX_POLICIES = {"puct": "muzero_policy", "gumbel": "gumbel_muzero_policy"}
DRAWING = "{}, drawing noise"


def draw_noise(rng: np.random.Generator, shape: Shape, policy: str) -> dict[str, np.ndarray]:
    """Draws the arguments for exploration of `BatchedTree.reset`."""
    num_roots, num_actions, _ = shape
    if policy == "gumbel":
        return {"gumbel": rng.gumbel(size=(num_roots, num_actions)).astype(np.float32)}
    return {"noise": rng.dirichlet([0.3] * num_actions, num_roots).astype(np.float32) + np.float32(1e-6)}


def tree_subject(
    shape: Shape, policy: str, num_threads: int = 1, draws_noise: bool = False
) -> tuple[Subject, BatchedTree]:
    rng = np.random.default_rng(0)
    num_roots, num_actions, num_simulations = shape
    logits = rng.normal(size=(POOL, num_roots, num_actions)).astype(np.float32)
    value = (0.5 * rng.normal(size=(POOL, num_roots))).astype(np.float32)
    prefix = (0.2 * rng.normal(size=(POOL, num_roots))).astype(np.float32)
    noise = draw_noise(rng, shape, policy)
    pool = [(prefix[i], value[(i + 1) % POOL], logits[(i + 3) % POOL]) for i in range(POOL)]
    outputs = [pool[i % POOL] for i in range(num_simulations)]
    tree = BatchedTree(*shape, discount=DISCOUNT, policy=policy, num_threads=num_threads)

    def search() -> object:
        explore = draw_noise(rng, shape, policy) if draws_noise else noise
        tree.reset(logits[0], value=value[0], **explore)
        for output in outputs:
            tree.select()
            tree.expand_and_backup(*output)
        return tree.visit_counts(), tree.root_values(), tree.qvalues(), tree.improved_policy(), tree.selected_actions()

    return (search, time.thread_time if num_threads == 1 else time.perf_counter), tree


def mctx_subject(shape: Shape, policy: str) -> Subject:
    import jax
    import jax.numpy as jnp
    import mctx

    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(TABLE, shape.num_actions)), jnp.float32)
    value, reward = (jnp.asarray(scale * rng.normal(size=TABLE), jnp.float32) for scale in (0.5, 0.2))
    root_index = jnp.asarray(rng.integers(TABLE, size=shape.num_roots))

    def recurrent(_params: Any, _rng: Any, action: Any, index: Any) -> Any:
        leaf = (index * 131 + action * 17 + 7) % TABLE
        discount = jnp.full(action.shape, DISCOUNT, jnp.float32)
        output = {"reward": reward[leaf], "discount": discount, "prior_logits": logits[leaf], "value": value[leaf]}
        return mctx.RecurrentFnOutput(**output), leaf

    def run(key: Any, index: Any) -> Any:
        root = mctx.RootFnOutput(prior_logits=logits[index], value=value[index], embedding=index)
        result = getattr(mctx, policy)(None, key, root, recurrent, shape.num_simulations)
        return result.action, result.action_weights

    compiled, key = jax.jit(run), jax.random.PRNGKey(0)
    return lambda: jax.block_until_ready(compiled(key, root_index)), time.process_time


def measure(*shapes: Shape, with_mctx: bool, repetitions: int, num_threads: int) -> list[dict[str, Any]]:
    """Measures the rows of all subjects for some shapes, in turns."""
    subjects: dict[tuple[str, Shape], Subject] = {}
    trees = {}
    for shape in shapes:
        for policy in ("puct", "gumbel"):
            subjects[policy, shape], trees[policy, shape] = tree_subject(shape, policy)
        if num_threads > 1:
            key = f"puct, {num_threads} threads (wall time)", shape
            subjects[key], trees[key] = tree_subject(shape, "puct", num_threads)
        if with_mctx and shape in MCTX_SHAPES:
            for policy, name in MCTX_POLICIES.items():
                subjects[DRAWING.format(policy), shape], _ = tree_subject(shape, policy, draws_noise=True)
                subjects[f"mctx.{name}", shape] = mctx_subject(shape, name)
    rows = []
    for (name, shape), times in time_in_turns(subjects, repetitions).items():
        simulations = shape.num_roots * shape.num_simulations
        row = {"subject": name, **shape._asdict(), "repetitions": len(times)}
        row |= {"ms_min": round(min(times), 4), "ms_median": round(statistics.median(times), 4)}
        row["ns_per_simulation"] = round(1e6 * min(times) / simulations)
        row["simulations_per_s"] = round(1000 * simulations / min(times))
        if tree := trees.get((name, shape)):
            depths = [tree.node_table(i)["depth"].mean() for i in range(shape.num_roots)]
            row |= {"megabytes": round(tree.nbytes / 1e6, 3), "mean_depth": round(float(np.mean(depths)), 2)}
        rows.append(row)
    return rows


def goals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The goals of the tree: figure, limit and whether it was met."""
    found = {(row["subject"], *(row[field] for field in Shape._fields)): row for row in rows}
    large, long, single = (found.get(("puct", *shape)) for shape in ((256, 18, 50), (256, 18, 200), (1, 18, 50)))
    results = {}
    if large:
        speed, memory = large["simulations_per_s"], large["megabytes"]
        results["simulations/s at B=256 A=18 N=50, at least"] = (speed, 2.5e6, speed >= 2.5e6)
        results["megabytes at B=256 A=18 N=50, less than"] = (memory, 8, memory < 8)
    for policy, least in (("puct", 100), ("gumbel", 15)):
        ours = found.get((DRAWING.format(policy), 256, 18, 50))
        peer = found.get((f"mctx.{MCTX_POLICIES[policy]}", 256, 18, 50))
        if ours and peer:
            ratio = round(peer["ms_min"] / ours["ms_min"], 1)
            results[f"speed of mctx.{MCTX_POLICIES[policy]} at B=256 A=18 N=50, times at least"] = (
                ratio,
                least,
                ratio >= least,
            )
    if large and long:
        ratio = round(long["ns_per_simulation"] / large["ns_per_simulation"], 2)
        results["time per simulation at N=200 over N=50, at most"] = (ratio, 1.5, ratio <= 1.5)
    if single:
        latency = single["ns_per_simulation"] / 1000
        results["microseconds per simulation at B=1 with the Python calls, less than"] = (latency, 5, latency < 5)
    return {name: dict(zip(("measured", "goal", "met"), result, strict=True)) for name, result in results.items()}


def summary(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Lines on all subjects at the shape that has goals, or at the largest one measured."""
    shapes = [Shape(*(row[field] for field in Shape._fields)) for row in rows]
    shown = Shape(256, 18, 50) if Shape(256, 18, 50) in shapes else max(shapes, key=math.prod)
    at = "B={} A={} N={}".format(*shown)
    return {
        f"{row['subject']}, {at}": f"{row['simulations_per_s'] / 1e6:.3f} M simulations/s"
        for row, shape in zip(rows, shapes, strict=True)
        if shape == shown
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="60 shapes instead of 6; minutes instead of seconds")
    parser.add_argument("--out", type=Path, default=reports.RESULTS / "tree.json")
    parser.add_argument("--repetitions", type=int, default=15, help="per shape and subject, at least 7 (default: 15)")
    parser.add_argument("--threads", type=int, default=1, help="also time pUCT with so many threads, by wall time")
    parser.add_argument("--no-mctx", action="store_true", help="leave mctx out")
    args = parser.parse_args()

    has_mctx = not args.no_mctx and importlib.util.find_spec("mctx") is not None
    if args.threads == 1:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    conditions = reports.conditions("mctx", "jax") | {"build": "-O3 -std=c++17 -ffp-contract=off, no -march"}
    report: dict[str, Any] = {reports.SUMMARY: {}, "conditions": conditions, "rows": []}
    for shapes in FULL_GRID if args.full else DEFAULT_GRID:
        rows = measure(*shapes, with_mctx=has_mctx, repetitions=max(7, args.repetitions), num_threads=args.threads)
        report["rows"] += rows
        for row in rows:
            at = "B={:<5} A={:<4} N={:<4}".format(*(row[field] for field in Shape._fields))
            speed = row["simulations_per_s"] / 1e6
            print(f"{at} {row['subject']:26} {row['ms_min']:10.3f} ms {speed:8.3f} M/s")
    report["goals"] = goals(report["rows"])
    for name, result in report["goals"].items():
        print(f"{'met' if result['met'] else 'MISSED'}: {name} {result['goal']}: {result['measured']}")
    report[reports.SUMMARY] = summary(report["rows"])
    reports.write(args.out, report)


if __name__ == "__main__":
    main()
