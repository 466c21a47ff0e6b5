"""What turns on the host bring the threads of a process with a GPU, on a machine without one.

    python -m benchmarks.turns [--updates N] [--out benchmarks/results/turns.json]

The threads of such a process as they were measured on an H200 (`results/gpu-threads.txt`): the Learner, two that
reanalyze, one that draws windows. What they do on the host is done, as calls of PyTorch on few numbers between pieces
of Python, as many as take that long when nobody disturbs them; waiting for the device is sleeping. With and without
`rllib_efficientzero.turns`, turn about, in processes of their own. Says what Python's lock costs; nothing of a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from benchmarks import report as reports
from rllib_efficientzero.turns import SWITCH_INTERVAL, Turn, given_up

MICROSECONDS_PER_CALL = 7.0
"""Of a call of PyTorch on few numbers, and of Python around it."""
WARM_UP = 10
REANALYZING = 2
"""Threads that do, as there were when they were measured."""
Step = tuple[float, float]
"""Milliseconds on the host, then milliseconds of waiting."""
LEARNER: Sequence[Step] = ((1.0, 9.5), (2.5, 0.0))
REANALYSIS: Sequence[Step] = ((1.5, 7.0), (3.5, 13.0), (3.5, 0.0))
DRAW: Sequence[Step] = ((2.0, 6.0),)


def work(steps: Sequence[Step], numbers: torch.Tensor) -> None:
    """One round of a thread."""
    for host, device in steps:
        for _ in range(round(1000 * host / MICROSECONDS_PER_CALL)):
            torch.add(numbers, 1.0)
            sum(range(150))
        with given_up():
            time.sleep(device / 1000)


def ms_per_update(updates: int, *, turns: bool) -> float:
    """Of a pipeline that keeps the threads busy."""
    torch.set_num_threads(1)
    sys.setswitchinterval(SWITCH_INTERVAL)
    taken: Callable[[], AbstractContextManager[None]] = Turn().taken if turns else contextlib.nullcontext
    drawn: queue.Queue[None] = queue.Queue(maxsize=REANALYZING)
    made: queue.Queue[None] = queue.Queue(maxsize=REANALYZING)

    def draw() -> None:
        while True:
            with taken():
                work(DRAW, torch.zeros(1000))
            drawn.put(None)

    def reanalyze() -> None:
        while True:
            drawn.get()
            with taken():
                work(REANALYSIS, torch.zeros(1000))
            made.put(None)

    for thread in (draw, *REANALYZING * (reanalyze,)):
        threading.Thread(target=thread, daemon=True).start()
    started = 0.0
    for update in range(WARM_UP + updates):
        if update == WARM_UP:
            started = time.perf_counter()
        made.get()
        with taken():
            work(LEARNER, torch.zeros(1000))
    return 1000 * (time.perf_counter() - started) / updates


def alone(updates: int, *, turns: bool) -> float:
    """`ms_per_update` in a process of its own, which ends with its threads."""
    command = [sys.executable, "-m", "benchmarks.turns", "--updates", str(updates), "--only", str(int(turns))]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=reports.ROOT)
    return float(run.stdout)


def main() -> None:
    """Measures, and writes one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", type=int, choices=(0, 1), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=reports.RESULTS / "turns.json")
    args = parser.parse_args()
    if args.only is not None:
        print(ms_per_update(args.updates, turns=bool(args.only)), flush=True)
        os._exit(0)  # its threads never end
    conditions = reports.conditions("torch")
    found: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(args.repetitions):
        for turns, measured in found.items():
            measured.append(alone(args.updates, turns=turns))
    free, taking_turns = (statistics.median(found[turns]) for turns in (False, True))
    summary = {"an update among threads": f"{taking_turns:.1f} ms with turns on the host, {free:.1f} ms without"}
    results = {"with_turns_ms": reports.spread(found[True]), "without_ms": reports.spread(found[False])}
    reports.write(args.out, {reports.SUMMARY: summary, "conditions": conditions, **results})
    for what, figure in summary.items():
        print(f"{what}: {figure}")


if __name__ == "__main__":
    main()
