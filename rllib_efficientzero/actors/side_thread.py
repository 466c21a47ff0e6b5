"""A thread beside the Learner of this process, with a stream of its own where that has a GPU."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar

import torch

from rllib_efficientzero.models.cuda_graphs import own_stream

T = TypeVar("T")


class Task(Generic[T]):
    """A call in a `SideThread`."""

    def __init__(self, future: Future[tuple[T, torch.cuda.Event | None]]) -> None:
        self._future = future

    def result(self) -> T:
        """What it returned, or raised. The caller's stream will wait for what it computed, and for nothing after that.

        Memory of tensors goes back to the other thread's stream: whoever uses them must wait for the device before
        letting them go.
        """
        value, computed = self._future.result()
        if computed is not None:
            torch.cuda.current_stream(computed.device).wait_event(computed)
        return value

    def wait(self) -> None:
        """Until the call has returned, or raised."""
        wait([self._future])


class SideThread:
    """Runs one call after the other. On a GPU their kernels go on while other threads, or the device, wait.

    Example:
        >>> thread = SideThread("adder", torch.device("cpu"))
        >>> thread.submit(sum, [1, 2]).result()
        3
        >>> thread.stop()
    """

    def __init__(self, name: str, device: torch.device) -> None:
        """Args:
        name: the thread's name begins with it.
        device: on which it computes.
        """
        self._device = device
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._stream = own_stream(device) if device.type == "cuda" else None

    def submit(self, function: Callable[..., T], *arguments: Any, **options: Any) -> Task[T]:
        """Calls it there, after what the caller's stream has been told to do so far."""
        told = None if self._stream is None else torch.cuda.current_stream(self._device).record_event()
        return Task(self._thread.submit(self._run, told, function, arguments, options))

    def stop(self) -> None:
        """Waits for what was submitted, and ends the thread."""
        self._thread.shutdown()

    def _run(
        self, told: torch.cuda.Event | None, function: Callable[..., T], arguments: Any, options: Any
    ) -> tuple[T, torch.cuda.Event | None]:
        if self._stream is None or told is None:
            return function(*arguments, **options), None
        self._stream.wait_event(told)
        with torch.cuda.stream(self._stream):
            return function(*arguments, **options), self._stream.record_event()
