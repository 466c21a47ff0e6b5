"""How often Python switches between the threads of a process that keep a device busy."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

SWITCH_INTERVAL = 2e-4
"""Seconds after which a thread gives up Python's lock if others wait for it. With Python's default of 5 ms, work of
microseconds, such as launching a kernel, takes milliseconds."""

_switching = threading.RLock()  # reentrant: garbage collection may leave a context at any point, even while it is held
_intervals_before: list[float] = []  # one per context entered and not left; the first is the interval before all


@contextlib.contextmanager
def switching_often() -> Iterator[None]:
    """Lets Python switch between threads every `SWITCH_INTERVAL`, until the last such context is left.

    The interval belongs to the process, in which several algorithms may ask for it and stop in any order.
    """
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
