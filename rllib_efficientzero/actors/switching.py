"""How often Python switches between the threads of a process that keep a device busy."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

SWITCH_INTERVAL = 2e-4
"""Seconds for which a thread should keep Python's lock while others wait for it. By Python's own 5 ms, what takes
microseconds, such as to start a kernel, takes milliseconds."""

_switching = threading.RLock()  # what is forgotten within leaves when it is collected, which may be anywhere
_intervals_before: list[float] = []  # as many as there are within `switching_often`; the first is that of before


@contextlib.contextmanager
def switching_often() -> Iterator[None]:
    """Lets Python switch between threads every `SWITCH_INTERVAL`, until the last of those within it leaves, in whatever
    order they do: the interval is the process's, and every algorithm in it asks for it."""
    with _switching:
        _intervals_before.append(sys.getswitchinterval())
        sys.setswitchinterval(min(SWITCH_INTERVAL, _intervals_before[0]))
    try:
        yield
    finally:
        with _switching:
            last = _intervals_before.pop()
            if not _intervals_before:
                sys.setswitchinterval(last)
