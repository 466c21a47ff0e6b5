"""A thread beside this process's Learner, with its own CUDA stream if the Learner is on a GPU."""

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
        """Returns what the call returned, or raises its error. The caller's stream waits for the call's kernels, and
        for none that the thread launches later.

        The tensors' memory belongs to the thread's stream, which reuses it once they are released: wait for the device
        before releasing them.
        """
        value, computed = self._future.result()
        if computed is not None:
            torch.cuda.current_stream(computed.device).wait_event(computed)
        return value

    def wait(self) -> None:
        """Waits until the call has returned or raised."""
        wait([self._future])


class SideThread:
    """Runs calls one after the other. On a GPU their kernels run on its own stream, beside those of other threads.

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
        """Calls a function in the thread; its kernels run after those queued on the caller's stream so far."""
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
