"""Threads of one process that keep a device busy take turns on the host.

Python lets one thread run at a time, and every call of PyTorch gives others the chance to: among five threads, work of
half a millisecond took up to ten, while the device had nothing to do. So whoever has the turn works undisturbed, and
gives it up where it waits for the device, or for somebody else.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SWITCH_INTERVAL = 2e-4
"""Seconds for which a thread should keep Python's lock while others wait for it. By Python's own 5 ms, what takes
microseconds, such as to start a kernel, takes milliseconds."""

_of_this_thread = threading.local()
_switching = threading.RLock()  # what is forgotten within leaves when it is collected, which may be anywhere
_intervals_before: list[float] = []  # as many as there are within `switching_often`; the first is that of before


class Turn:
    """What one thread of several has at a time.

    Example:
        >>> turn = Turn()
        >>> with turn.taken():
        ...     with given_up():
        ...         pass  # wait for somebody
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Waits until it is this thread's, and keeps it but for what is within `given_up`."""
        self._lock.acquire()
        _of_this_thread.lock = self._lock
        try:
            yield
        finally:
            # It is not where a signal ended the waiting in `given_up`.
            if _of_this_thread.lock is self._lock:
                _of_this_thread.lock = None
                self._lock.release()


@contextlib.contextmanager
def given_up() -> Iterator[None]:
    """Lets others have the turn, for waiting and for long calls that need no Python; for a thread that has it."""
    lock = getattr(_of_this_thread, "lock", None)
    if lock is None:
        yield
        return
    _of_this_thread.lock = None
    lock.release()
    try:
        yield
    finally:
        lock.acquire()
        _of_this_thread.lock = lock


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


def to_host(tensor: Tensor) -> Tensor:
    """The tensor on the CPU; while the device computes it, others have their turn."""
    with given_up():
        return tensor.cpu()
