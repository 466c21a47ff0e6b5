"""Processes of this machine, from /proc."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Iterable


def _parents() -> dict[int, int]:
    """Process id -> its parent's, of processes that live (not those that only wait to be reaped)."""
    parents: dict[int, int] = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name is in parentheses and may hold anything.
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(path.parent.name)] = int(parent)
    return parents


def descendants(pid: int) -> set[int]:
    """All processes that a process has started, and those that they have."""
    parents = _parents()
    found: set[int] = set()
    new = {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def title(pid: int) -> str:
    """What a process calls itself."""
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def still_alive(pids: Iterable[int], timeout_s: float) -> set[int]:
    """Those of some processes that live on after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while (alive := set(pids) & _parents().keys()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return alive
