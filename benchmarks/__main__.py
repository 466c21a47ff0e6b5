"""Runs all benchmarks in their quick form, one after the other in separate processes, and prints a table of results.

    python -m benchmarks [--full] [NAME ...]

Writes `benchmarks/results/<name>.json`. With `--full` grids are complete and loops longer: about an hour on a CPU
instead of minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import report as reports

QUICK = {
    "tree": ["tree"],
    "replay": ["replay"],
    "search": ["search"],
    "loop": ["loop", "--network", "small"],
    "loop_paper": ["loop", "--network", "paper"],
    "lightzero_settings": ["lightzero_settings"],
    "serve": ["serve"],
}
"""Result's name -> module and its arguments."""
FULL = {
    "tree": ["tree", "--full"],
    "replay": ["replay"],
    "search": ["search", "--full"],
    "loop": ["loop", "--network", "small", "--updates", "200"],
    "loop_paper": ["loop", "--network", "paper", "--updates", "12"],
    "lightzero_settings": ["lightzero_settings", "--updates", "10"],
    "serve": ["serve", "--requests", "5000"],
}


def run(name: str, module: str, *arguments: str) -> tuple[Path, bool]:
    """Runs one benchmark and shows its output. Returns the path of its result, and whether it succeeded."""
    out = reports.RESULTS / f"{name}.json"
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments, "--out", str(out)]
    print(f"--- {' '.join(command[1:])}", flush=True)
    # One thread, unless the caller sets the number, so that figures of different machines are for one core each.
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    started = time.perf_counter()
    code = subprocess.run(command, cwd=reports.ROOT, env=environment, check=False).returncode
    print(f"--- {name}: {f'failed with exit code {code}' if code else 'done'}, {time.perf_counter() - started:.0f} s")
    return out, code == 0


def table(results: dict[str, Path]) -> str:
    """Formats the summaries of all results as an aligned table."""
    lines = []
    for name, path in results.items():
        lines.append(f"\n{name} ({_when(path)})")
        summary = json.loads(path.read_text())[reports.SUMMARY]
        width = max(map(len, summary), default=0)
        lines += [f"  {what:{width}}  {figure}" for what, figure in summary.items()]
    return "\n".join(lines)


def _when(path: Path) -> str:
    conditions = json.loads(path.read_text())["conditions"]
    commit, _, changed = conditions["commit"].partition(" ")
    load = f"load {conditions['load_average_before']:.1f} on {conditions['cores']} cores"
    return ", ".join(part for part in (conditions["cpu"], load, f"commit {commit[:10]} {changed}".strip()) if part)


def main() -> int:
    """Returns 1 if a benchmark failed; the others are still run and shown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="whole grids and longer loops")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these: {', '.join(FULL)}")
    args = parser.parse_args()
    known = FULL if args.full else QUICK
    if unknown := [name for name in args.names if name not in known]:
        parser.error(f"unknown benchmark {unknown[0]!r}; there are {', '.join(known)}")
    results, failed = {}, []
    for name in args.names or known:
        out, succeeded = run(name, *known[name])
        if succeeded:
            results[name] = out
        else:
            failed.append(name)
    print(table(results))
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
