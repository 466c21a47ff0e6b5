"""CUDA graphs: kernels recorded once and launched as one, for functions whose tensors keep their shapes and places."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

WARM_UP_CALLS = 3
"""Calls before a recording, in which libraries choose algorithms and allocate workspaces."""
MIN_CALLS = 3
"""Calls with some shapes before they get a graph, where shapes vary and most never come again."""
MAX_GRAPHS = 8
"""Graphs of one function. Each keeps its inputs, and without copies its activations."""

T = TypeVar("T")

_failed: list[torch.cuda.CUDAGraph] = []
"""Graphs that could not be recorded to their end: torch's allocator may go on asking them."""
one_at_a_time = threading.RLock()
"""Held while a graph is recorded and while a compiled function is called. Torch's compiler changes settings of the
process meanwhile, and waits for the device, which a recording in another thread would not survive. Re-entrant, so that
a recording within a recording ends with CUDA's error, not with a thread that waits for itself."""


@dataclasses.dataclass
class Pool:
    """Memory that several graphs compute in, of which one is launched at a time."""

    handle: Any = None


def record(
    function: Callable[[], T],
    *,
    device: torch.device,
    prepare: Callable[[], None] = lambda: None,
    pool: Pool | None = None,
) -> tuple[Callable[[], None], T] | None:
    """Record what a function launches on a device.

    Args:
        function: reads and writes tensors that stay where they are, does not wait for the device, and may be called
            several times.
        device: where its tensors lie.
        prepare: called before each of these calls.
        pool: where the graph computes, beside others; None: in memory of its own.

    Returns:
        What launches it again, and what it returned, which each launch computes anew in the same place. None where it
        cannot be recorded; a warning says why.
    """
    # Other threads may go on meanwhile, as long as they record nothing.
    with one_at_a_time, torch.cuda.device(device):
        current = torch.cuda.current_stream(device)
        side = _recording_stream(current.device, current.priority)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_CALLS):
                prepare()
                function()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            handle = None if pool is None else pool.handle
            recording = torch.cuda.graph(graph, pool=handle, stream=side, capture_error_mode="thread_local")
            # Where a recording fails at its end, `recording` leaves its stream the current one.
            with torch.cuda.stream(side), _outside_inference_mode(recording):
                result = function()
        except RuntimeError as error:
            logger.warning("no CUDA graph could be recorded, which makes updates and searches slower: %s", error)
            _failed.append(graph)
            return None
    if pool is not None:
        pool.handle = graph.pool()
    return graph.replay, result


@contextlib.contextmanager
def _outside_inference_mode(recording: AbstractContextManager[Any]) -> Iterator[None]:
    """A recording that begins and ends outside of inference mode, with a block that is in the mode that it was.

    Torch before 2.11 makes the generator's state in the first recording of a process, and every other one writes to it,
    which none outside of inference mode could if the first had been within.
    """
    is_inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    with torch.inference_mode(False), recording, torch.inference_mode(is_inference), torch.set_grad_enabled(grad):
        yield


@functools.cache
def _recording_stream(device: torch.device, priority: int) -> torch.cuda.Stream:
    """Kernels keep the priority of the stream that they were recorded on."""
    return torch.cuda.Stream(device, priority=priority)


def own_stream(device: torch.device, priority: int = 0) -> torch.cuda.Stream:
    """A stream that nobody records on: torch has 32 of each priority, and gives them out again."""
    while True:
        stream = torch.cuda.Stream(device, priority=priority)
        # By what the stream says: `device` may be without an index.
        if stream != _recording_stream(stream.device, stream.priority):
            return stream


def follow_default_stream(device: torch.device) -> None:
    """Lets the current stream wait for the default one, which RLlib copies observations on whatever the current one is;
    nothing to do on a CPU."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).wait_stream(torch.cuda.default_stream(device))


class GraphedFunction:
    """A function of tensors that gets a graph for each combination of shapes that it is called with often."""

    def __init__(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        *,
        around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        copies: bool = True,
        min_calls: int = MIN_CALLS,
    ) -> None:
        """Args:
        function: see `record`.
        around: entered for a recording, to take back what the calls for it change in other tensors than the results.
        copies: whether results are copies. Else the next call with the same shapes writes over them.
        min_calls: calls with some shapes, the one that records it included, until they have a graph.
        """
        self._function, self._around, self._copies, self._min_calls = function, around, copies, min_calls
        # Without copies, what one graph has computed would be lost when another one is launched.
        self._pool = Pool() if copies else None
        self._graphs: dict[tuple, Callable[..., tuple[Tensor, ...]]] = {}
        self._calls: Counter[tuple] = Counter()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        shapes = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in inputs)
        if shapes not in self._graphs:
            self._calls[shapes] += 1
            if self._calls[shapes] < self._min_calls or len(self._graphs) >= MAX_GRAPHS:
                return self._function(*inputs)
            self._graphs[shapes] = self._recorded(inputs)
        return self._graphs[shapes](*inputs)

    def _recorded(self, inputs: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
        """The function with a graph in it for inputs like these; the function itself where it cannot be recorded."""
        places = tuple(tensor.clone() for tensor in inputs)
        with self._around():
            recorded = record(lambda: self._function(*places), device=places[0].device, pool=self._pool)
        if recorded is None:
            return self._function
        replay, results = recorded

        def call(*inputs: Tensor) -> tuple[Tensor, ...]:
            pairs = [_in_words(place, given) for place, given in zip(places, inputs, strict=True)]
            to, given = zip(*pairs, strict=True)
            # One call: after each of several, this thread might have to wait for Python's lock.
            torch._foreach_copy_(to, given, non_blocking=True)
            replay()
            return tuple(tensor.clone() for tensor in results) if self._copies else results

        return call


def _in_words(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of one shape, rows of bytes as numbers of 64 bits where all can be seen so: to copy takes its time per
    number (35 microseconds for 137, of 256 times 9 of 14 frames)."""
    if tensors[0].dtype != torch.uint8 or not all(_has_words(tensor) for tensor in tensors):
        return tensors
    return tuple(tensor.flatten(1).view(torch.int64) for tensor in tensors)


def _has_words(tensor: Tensor) -> bool:
    if tensor.ndim < 2 or not len(tensor) or not tensor[0].is_contiguous():
        return False
    return tensor[0].numel() % 8 == tensor.stride(0) % 8 == tensor.storage_offset() % 8 == 0
