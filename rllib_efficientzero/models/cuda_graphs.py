"""CUDA graphs: kernels recorded once and launched as one, for functions with fixed tensor shapes and addresses."""

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
"""The call with the same shapes that records a graph. Earlier would be wasteful: most shapes never come again."""
MAX_GRAPHS = 8
"""The most graphs of one function. Each keeps its inputs, and without copies its activations."""

T = TypeVar("T")

_failed: list[torch.cuda.CUDAGraph] = []
"""Graphs whose recording failed. They are kept, since torch's allocator may still refer to them."""
one_at_a_time = threading.RLock()
"""Held while a graph is recorded and while a compiled function is called. Torch's compiler changes settings of the
process meanwhile, and waits for the device, which would break a recording in another thread. Reentrant: a recording
within a recording gets CUDA's error instead of a deadlock."""


@dataclasses.dataclass
class Pool:
    """Memory shared by several graphs, which must not run at the same time."""

    handle: Any = None


def record(
    function: Callable[[], T],
    *,
    device: torch.device,
    prepare: Callable[[], None] = lambda: None,
    pool: Pool | None = None,
) -> tuple[Callable[[], None], T] | None:
    """Records the kernels that a function launches on a device as a CUDA graph.

    Args:
        function: reads and writes tensors at fixed addresses, does not wait for the device, and may be called several
            times.
        device: where its tensors are.
        prepare: called before each warm-up call.
        pool: memory that the graph shares with others; None: its own memory.

    Returns:
        A function that launches the graph, and the function's result, whose tensors each launch computes again in
        place. None if it cannot be recorded; a warning says why.
    """
    # Other threads can go on in the meantime, as long as they neither record nor call compiled functions.
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
            # If a recording fails at its end, `recording` does not restore the current stream; this context does.
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
    """Enters and leaves `recording` outside of inference mode, but runs the block in the caller's mode.

    Torch before 2.11 creates the generator's state tensors in the first recording of a process, and later recordings
    write to them. If the first one were in inference mode, later ones outside of it could not.
    """
    is_inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    with torch.inference_mode(False), recording, torch.inference_mode(is_inference), torch.set_grad_enabled(grad):
        yield


@functools.cache
def _recording_stream(device: torch.device, priority: int) -> torch.cuda.Stream:
    """The stream to record on, one for each priority: kernels keep the priority of the stream they were recorded on."""
    return torch.cuda.Stream(device, priority=priority)


def own_stream(device: torch.device, priority: int = 0) -> torch.cuda.Stream:
    """A stream that nobody records on: torch has only 32 of each priority, and hands them out in turn."""
    while True:
        stream = torch.cuda.Stream(device, priority=priority)
        # Look up the recording stream by the stream's own device, since `device` may have no index.
        if stream != _recording_stream(stream.device, stream.priority):
            return stream


def follow_default_stream(device: torch.device) -> None:
    """Lets the current stream wait for the default stream, on which RLlib copies observations whatever stream is
    current. Does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).wait_stream(torch.cuda.default_stream(device))


class GraphedFunction:
    """A function of tensors that gets a CUDA graph for each combination of shapes that occurs often enough."""

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
        around: a context entered for a recording, which undoes the side effects of the calls that it takes.
        copies: whether results are copied. Otherwise the next call with the same shapes overwrites them.
        min_calls: the number of the call, with the same shapes, that records a graph.
        """
        self._function, self._around, self._copies, self._min_calls = function, around, copies, min_calls
        # No shared memory without copies: launching one graph would overwrite the results of another.
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
        """Records a graph for inputs like these and returns a function that launches it; if that fails, the function
        itself."""
        places = tuple(tensor.clone() for tensor in inputs)
        with self._around():
            recorded = record(lambda: self._function(*places), device=places[0].device, pool=self._pool)
        if recorded is None:
            return self._function
        replay, results = recorded

        def call(*inputs: Tensor) -> tuple[Tensor, ...]:
            pairs = [_in_words(place, given) for place, given in zip(places, inputs, strict=True)]
            to, given = zip(*pairs, strict=True)
            # One call instead of several, after each of which this thread might have to wait for Python's lock.
            torch._foreach_copy_(to, given, non_blocking=True)
            replay()
            return tuple(tensor.clone() for tensor in results) if self._copies else results

        return call


def _in_words(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Views uint8 tensors of one shape as int64 if all of them allow it: the time of a copy depends on the number of
    elements (35 microseconds instead of 137 for 9 of 14 frames of 256 windows)."""
    if tensors[0].dtype != torch.uint8 or not all(_has_words(tensor) for tensor in tensors):
        return tensors
    return tuple(tensor.flatten(1).view(torch.int64) for tensor in tensors)


def _has_words(tensor: Tensor) -> bool:
    if tensor.ndim < 2 or not len(tensor) or not tensor[0].is_contiguous():
        return False
    return tensor[0].numel() % 8 == tensor.stride(0) % 8 == tensor.storage_offset() % 8 == 0
