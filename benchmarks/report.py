"""Shared by the benchmarks: the conditions of a run, timing of subjects in turns, clocks, the JSON file."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
SOURCES = ("ctree", "rllib_efficientzero", "benchmarks/*.py", "tuned_examples")
SUMMARY = "summary"
"""Key of a report's most important figures, as text, for the table of `python -m benchmarks`."""

Subject = tuple[Callable[[], object], Callable[[], float]]
"""A function to time, and the clock to time it with."""


def conditions(*packages: str) -> dict[str, Any]:
    """Hardware, load, commit and versions. Call it before the measurements, so that their own load is not counted."""
    found = {name: importlib.metadata.version(name) for name in ("numpy", *packages) if importlib.util.find_spec(name)}
    return {
        "commit": _commit(),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "load_average_before": round(os.getloadavg()[0], 2),  # other work on the same cores makes all figures worse
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "python": platform.python_version(),
        **found,
    }


def _commit() -> str:
    def git(*command: str) -> str:
        run = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=False)
        return run.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", *SOURCES)
    return (git("rev-parse", "HEAD") or "unknown") + (" with uncommitted changes" if changed else "")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class Warnings(logging.StreamHandler):
    """Prints and collects warnings of the package and of torch's compiler; on a GPU each means something is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.setLevel(logging.WARNING)
        self.lines: list[str] = []
        for name in ("rllib_efficientzero", "torch._dynamo", "torch._inductor"):
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Prints the message at once, since a run that is cut short writes no report, and keeps its first line."""
        super().emit(record)
        self.lines.append(f"{record.name}: {record.getMessage().splitlines()[0]}")


def spread(values: list[float], digits: int = 3) -> dict[str, float]:
    """The best time, which estimates that of an idle machine, and the median, under the load that there was."""
    return {"min": round(min(values), digits), "median": round(statistics.median(values), digits)}


def time_in_turns(
    subjects: Mapping[str, Subject], repetitions: int, *, at_least: int = 7, budget_s: float = 20.0
) -> dict[str, list[float]]:
    """Milliseconds of every repetition; subjects take turns, and the first turn is dropped.

    Each gets `at_least` repetitions, and further ones up to `repetitions` until its own take more than `budget_s`.
    """
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for repetition in range(max(repetitions, at_least) + 1):
        for name, (run, clock) in subjects.items():
            if repetition > at_least and sum(times[name]) > 1000 * budget_s:
                continue
            start = clock()
            run()
            if repetition > 0:
                times[name].append(1000 * (clock() - start))
    return times


class Stopwatch:
    """Attributes time to phases: every moment between `start` and `stop` to exactly one."""

    def __init__(self, clock: Callable[[], float], synchronize: Callable[[], object] | None = None) -> None:
        self._clock, self._synchronize = clock, synchronize
        self.start()

    def start(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._last = self._now()

    def mark(self, phase: str) -> None:
        """Attributes the time since the last mark to `phase`."""
        now = self._now()
        self.seconds[phase] += now - self._last
        self._last = now

    def wrap(self, function: Callable[..., Any], phase: str, before: str = "other") -> Callable[..., Any]:
        """Wraps `function` so that its time is attributed to `phase`, and the time since the last mark to `before`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.mark(before)
            result = function(*args, **kwargs)
            self.mark(phase)
            self.calls[phase] += 1
            return result

        return timed

    def wrap_method(self, owner: Any, method: str, phase: str, before: str = "other") -> None:
        """Replaces `owner.method` by its timed version, on this object only."""
        setattr(owner, method, self.wrap(getattr(owner, method), phase, before))

    def _now(self) -> float:
        if self._synchronize is not None:
            self._synchronize()
        return self._clock()


def write(path: Path, report: dict[str, Any]) -> None:
    """Writes a report as a JSON file, and makes its directory if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
