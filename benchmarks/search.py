"""Measures `mcts.Searcher.search` with real networks, compared with the bare network calls that it makes.

    python -m benchmarks.search [--full] [--device cpu|cuda] [--out benchmarks/results/search.json]

A search is one initial inference of B observations and `Searcher.search` with N simulations, with the network as acting
uses it (`InferenceNetwork`). "bare", with which it is compared, is one initial and N recurrent inferences of the same
shapes on inputs allocated beforehand; "plain" are the same calls of the network itself. All of these, and another copy
of the search with clocks in it (for the split into network, tree and copies), take turns in one run; the first turn is
dropped. On the CPU with one thread, times are CPU time of that thread, which other work on the machine disturbs less
than wall time; else they are wall time. On a processor shared by virtual machines the speed changes by a third within
seconds, so that turns differ by more than the search's overhead over its calls. The goal is therefore a ratio within
one search, measured by the clocks.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor

from benchmarks import report as reports
from benchmarks.report import Stopwatch, spread, time_in_turns
from rllib_efficientzero.mcts import SearchConfig, Searcher
from rllib_efficientzero.mcts.parts import Layout, whole
from rllib_efficientzero.models import EfficientZeroNetwork, InferenceNetwork, ModelConfig, build_network

POLICIES = ("puct", "gumbel")
GOAL_SHAPE, GOAL_RATIO = ("paper", 64), 1.05
SMALL_EXAMPLE = reports.ROOT / "tuned_examples" / "pong-ez-cpu.yaml"
COPIES = ("gather", "write", "fetch")


class Case(NamedTuple):
    network: str
    num_actions: int
    num_roots: int
    num_simulations: int


def grid(full: bool) -> list[Case]:
    networks = [("paper", 18), ("paper", 6), ("small", 6)]
    roots = (1, 4, 16, 64, 256) if full else (1, 4, 64)
    return [Case(*network, b, n) for network, b, n in itertools.product(networks, roots, (16, 50))]


# --- Subjects --------------------------------------------------------------------------------------------------------


def make_network(name: str, num_actions: int) -> tuple[EfficientZeroNetwork, tuple[int, ...]]:
    """The paper's network for Atari or that of the CPU example, and the planes `[C, H, W]` of its input.

    The last layers of heads are zero at first, so that all actions would be equal; here they get random weights.
    """
    if name == "paper":
        stacked_shape, sizes = (4, 96, 96, 3), ModelConfig()
    else:
        config = yaml.safe_load(SMALL_EXAMPLE.read_text())["pong-ez-cpu"]["config"]
        side = config["environment"]["env_config"]["screen_size"]
        stacked_shape, sizes = (4, side, side, 1), ModelConfig.from_dict(config["rl_module"]["model_config"])
    torch.manual_seed(0)
    network = build_network(stacked_shape, num_actions, sizes).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Linear) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.3)
    stack, height, width, channels = stacked_shape
    return network, (stack * channels, height, width)


def search_subject(
    network: Any, planes: Tensor, config: SearchConfig, searcher: Searcher | None = None
) -> Callable[[], object]:
    """Returns a function that runs one whole search, as self-play does."""
    searcher, rng = searcher or Searcher(config), np.random.default_rng(0)

    def run() -> object:
        root = network.initial_inference(planes)
        return searcher.search(network, root, rng=rng, explore=True, temperature=1.0)

    return run


def bare_subject(network: InferenceNetwork, planes: Tensor, num_simulations: int) -> Callable[[], object]:
    """Returns a function that makes only the network calls of one search."""
    root = network.initial_inference(planes)
    action = torch.zeros(len(planes), dtype=torch.int64, device=planes.device)

    def run() -> object:
        with torch.inference_mode():
            network.initial_inference(planes)
            for _ in range(num_simulations):
                output = network.recurrent_inference(root.latent, root.reward_hidden, action)
            return output.value.cpu()  # waits for the device

    return run


class _TimedTree:
    """A tree whose three methods that a search calls are timed."""

    def __init__(self, tree: Any, watch: Stopwatch) -> None:
        self._tree = tree
        for method in ("reset", "select", "expand_and_backup"):
            setattr(self, method, watch.wrap(getattr(tree, method), "tree"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tree, name)


def split_subject(
    network: InferenceNetwork, planes: Tensor, config: SearchConfig, watch: Stopwatch
) -> Callable[[], object]:
    """The search with clocks between its parts. Each clock waits for the device, so only the shares are meaningful."""
    timed = SimpleNamespace(
        initial_inference=watch.wrap(network.initial_inference, "network"),
        # Between selection and this call, the search collects the leaves' inputs and gathers their parents' states.
        recurrent_inference=watch.wrap(network.recurrent_inference, "network", before="gather"),
    )
    searcher = Searcher(config, Layout(whole))
    run = search_subject(timed, planes, config, searcher)
    run()
    ((part,),) = searcher._parts.values()
    part.tree = _TimedTree(part.tree, watch)
    watch.wrap_method(part.evaluator, "launch", "write")
    watch.wrap_method(part.evaluator, "collect", "fetch")
    return run


# --- Measuring -------------------------------------------------------------------------------------------------------


def measure(
    case: Case, device: str, *, policies: tuple[str, ...] = POLICIES, repetitions: int = 15, at_least: int = 3
) -> list[dict[str, Any]]:
    """Measures one row per policy."""
    plain, input_shape = make_network(case.network, case.num_actions)
    plain.to(device)
    network = InferenceNetwork(plain, mixed_precision=True)
    planes = torch.rand(case.num_roots, *input_shape, generator=torch.Generator().manual_seed(0)).to(device)
    clock = time.thread_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    watches = {name: Stopwatch(clock, torch.cuda.synchronize if device == "cuda" else None) for name in policies}
    splits: dict[str, list[dict[str, float]]] = {name: [] for name in policies}
    networks = {"bare": network, "plain": InferenceNetwork(plain, mixed_precision=True, compiled=False)}
    subjects: dict[str, reports.Subject] = {
        name: (bare_subject(called, planes, case.num_simulations), clock) for name, called in networks.items()
    }
    for name in policies:
        config = SearchConfig(policy=name, num_simulations=case.num_simulations)
        subjects[name] = (search_subject(network, planes, config), clock)
        split = split_subject(network, planes, config, watches[name])
        subjects[f"{name}, split"] = (_collect(split, watches[name], splits[name]), clock)
    times = time_in_turns(subjects, repetitions, at_least=at_least, budget_s=2.0)
    return [
        {"policy": name, **case._asdict(), **_figures(case, times[name], times["bare"], times["plain"])}
        | _split_figures(splits[name][1:])
        for name in policies
    ]


def _collect(run: Callable[[], object], watch: Stopwatch, splits: list[dict[str, float]]) -> Callable[[], object]:
    def timed() -> None:
        watch.start()
        run()
        watch.mark("other")
        splits.append(dict(watch.seconds))

    return timed


def _figures(case: Case, search: list[float], bare: list[float], plain: list[float]) -> dict[str, Any]:
    turns = [whole / calls for whole, calls in zip(search, bare, strict=False)]
    return {
        "repetitions": len(search),
        "search_ms": spread(search),
        "bare_network_ms": spread(bare),
        "plain_network_ms": spread(plain),
        "ratio": round(min(search) / min(bare), 3),
        "ratio_of_turns_median": round(statistics.median(turns), 3),
        "simulations_per_s": round(1000 * case.num_roots * case.num_simulations / min(search)),
        "simulations_per_s_median": round(1000 * case.num_roots * case.num_simulations / statistics.median(search)),
    }


def _split_figures(splits: list[dict[str, float]]) -> dict[str, Any]:
    """The ratio of a search to the network calls in it, and the fastest search's split into network, tree, copies (in
    total and each) and the rest."""
    fastest = min(splits, key=lambda split: sum(split.values()))
    ms = {phase: round(1000 * fastest.get(phase, 0.0), 3) for phase in ("network", "tree", *COPIES, "other")}
    copies = {phase: ms.pop(phase) for phase in COPIES}
    return {
        "ratio_within": round(statistics.median(sum(split.values()) / split["network"] for split in splits), 3),
        "split_ms": ms | {"copies": round(sum(copies.values()), 3), "of_copies": copies},
    }


def goals(rows: list[dict[str, Any]], device: str) -> dict[str, Any]:
    """The goals of the search: figure, limit and whether it was met."""
    if device != "cpu":
        return {}
    results = {}
    for row in rows:
        if (row["network"], row["num_roots"]) == GOAL_SHAPE:
            at = f"{row['policy']}, A={row['num_actions']} N={row['num_simulations']}"
            name = f"search over bare network calls, paper's network, B={row['num_roots']}, {at}, at most"
            measured = row["ratio_within"]
            results[name] = {"measured": measured, "goal": GOAL_RATIO, "met": measured <= GOAL_RATIO}
    return results


def summary(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Lines on searches with the most simulations, at the smallest and the largest batch of both networks."""
    roots, most = [row["num_roots"] for row in rows], max(row["num_simulations"] for row in rows)
    result = {}
    for row in rows:
        if row["num_simulations"] == most and row["num_roots"] in (min(roots), max(roots)):
            what = "{network} network, {policy}, B={num_roots} A={num_actions} N={num_simulations}".format(**row)
            result[what] = f"{row['simulations_per_s']:,} simulations/s, {row['ratio']:.2f} x bare calls"
    return result


def show(row: dict[str, Any]) -> None:
    at = "{network:5} B={num_roots:<4} A={num_actions:<3} N={num_simulations:<3} {policy:6}".format(**row)
    split = row["split_ms"]
    total = sum(split[phase] for phase in ("network", "tree", "copies", "other"))
    shares = " ".join(f"{phase} {split[phase] / total:5.1%}" for phase in ("network", "tree", "copies", "other"))
    ms, ratio = row["search_ms"], row["ratio"]
    speed = row["simulations_per_s"]
    print(f"{at} {ms['min']:9.2f} ms (median {ms['median']:9.2f}) {speed:8,} sims/s {ratio:6.3f} x bare  {shares}")


def main() -> None:
    """Measures the grid and writes one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also B = 16 and 256; many minutes on a CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--repetitions", type=int, default=15, help="at most, per case and subject (default: 15)")
    parser.add_argument("--out", type=Path, default=reports.RESULTS / "search.json")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    conditions = reports.conditions("torch") | {"device": args.device, "threads": args.threads}
    if args.device == "cuda":
        conditions["gpu"] = torch.cuda.get_device_name()
    conditions["clock"] = "thread CPU time" if (args.device, args.threads) == ("cpu", 1) else "wall time"
    rows = []
    for case in grid(args.full):
        for row in measure(case, args.device, repetitions=args.repetitions):
            show(row)
            rows.append(row)
    results = goals(rows, args.device)
    for name, result in results.items():
        print(f"{'met' if result['met'] else 'MISSED'}: {name} {result['goal']}: {result['measured']}")
    report = {reports.SUMMARY: summary(rows), "conditions": conditions, "rows": rows, "goals": results}
    reports.write(args.out, report)


if __name__ == "__main__":
    main()
