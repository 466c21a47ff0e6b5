"""A thread beside the Learner of this process, with a stream of its own where that has a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import torch


class SideThread:
    """Runs one call after the other. On a GPU their kernels go on while other threads, or the device, wait.

    Example:
        >>> thread = SideThread("adder", torch.device("cpu"))
        >>> thread.submit(sum, [1, 2]).result()
        3
        >>> thread.stop()
    """

    def __init__(
        self,
        name: str,
        device: torch.device,
        *,
        turn: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """Args:
        name: the thread's name begins with it.
        device: on which it computes.
        turn: `Turn.taken` of the threads beside it; see there.
        """
        self._device, self._turn = device, turn
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def submit(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Future:
        """Calls it there, after what the caller's stream has been told to do so far."""
        told = None if self._stream is None else torch.cuda.current_stream(self._device).record_event()
        return self._thread.submit(self._run, told, function, arguments, options)

    def hand_over(self) -> None:
        """Lets the caller's stream use what was computed.

        Its memory goes back to this thread's stream: whoever uses it must wait for the device before letting it go.
        """
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def stop(self) -> None:
        """Waits for what was submitted, and ends the thread."""
        self._thread.shutdown()

    def _run(self, told: torch.cuda.Event | None, function: Callable[..., Any], arguments: Any, options: Any) -> Any:
        if self._stream is not None and told is not None:
            self._stream.wait_event(told)
        with self._turn(), torch.cuda.stream(self._stream):  # without a GPU None, which changes nothing
            return function(*arguments, **options)
