"""Reanalysis in threads beside the Learner of this process: the next batches are made while it learns."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from torch import Tensor

from rllib_efficientzero.actors.batches import Batch
from rllib_efficientzero.actors.side_thread import SideThread, Task
from rllib_efficientzero.actors.switching import switching_often
from rllib_efficientzero.models.cuda_graphs import own_stream
from rllib_efficientzero.replay import Windows

MAX_WORKERS = 2
"""Threads that reanalyze. Two fill a GPU; each takes memory for its searches."""


@dataclasses.dataclass(frozen=True)
class _Job:
    """A batch in the making: its windows, and the tensors that are made of them."""

    drawn: Task[Windows]
    made: Task[dict[str, Tensor]]


class BatchesAhead:
    """Train batches for the Learner of this process, made while it is at those before, by the same connector.

    A batch that is made n updates ahead misses the priorities of n updates; the first ones of an iteration, which are
    begun before its self-play, miss the steps of that. This is all, and so a run repeats itself: no batch is made
    across a copy of the target network, so that it is made by that of its own update; and none across the end of an
    iteration, so that nothing is lost with a checkpoint.

    Windows are drawn in one thread and reanalyzed in one or two others, which on a GPU have streams of their own: while
    one of them, or the Learner, waits for the host, the others' kernels go on.
    """

    def __init__(self, config: Any, replay: Any, learner: Any) -> None:
        """Args:
        config: the algorithm's.
        replay: a `PrioritizedReplay` or `RemoteReplay`.
        learner: a Learner in this process.
        """
        self._replay = replay
        self._num_ahead = config.prefetched_batches()
        self._target_network_update_freq = config.target_network_update_freq
        self._metrics = MetricsLogger()
        device = learner._device
        self._front = own_stream(device, priority=-1) if device.type == "cuda" else None
        self._draws = SideThread("draw-windows", device)
        num_workers = min(self._num_ahead, MAX_WORKERS)
        self._workers = [_Reanalysis(config, learner, self._metrics) for _ in range(num_workers)]
        self._queue: collections.deque[_Job] = collections.deque()
        # What is compiled at its first call is compiled by one thread at a time: reanalysis first, then the Learner.
        self._has_begun = self._has_handed_over = False
        self._learner_has_begun = threading.Event()
        self._until_stopped = contextlib.ExitStack()
        self._until_stopped.enter_context(switching_often())

    # --- The interface of `Batches` ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def in_front(self) -> Iterator[None]:
        """See `Batches`. On a GPU their kernels go first."""
        try:
            with contextlib.nullcontext() if self._front is None else _on(self._front):
                yield
        except BaseException:
            self._learner_has_begun.set()  # Python waits for all threads at its end, and one may wait for this.
            raise

    def begin(self, batch_size: int, *, beta: Callable[[int], float], num_updates: int, num_following: int) -> None:
        """See `Batches`."""
        self._make_ahead(batch_size, beta, num_updates, range(num_updates, num_updates + num_following))

    def next(self, batch_size: int, *, beta: Callable[[int], float], num_updates: int, num_following: int) -> Batch:
        """See `Batches`."""
        if self._has_handed_over:
            self._learner_has_begun.set()
        if not self._queue:
            self._make(batch_size, beta, num_updates)
        job = self._queue.popleft()
        tensors = job.made.result()
        self._has_handed_over = True
        self._make_ahead(batch_size, beta, num_updates, range(num_updates + 1, num_updates + 1 + num_following))
        batch = MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(tensors)}, env_steps=batch_size)
        # To reduce metrics takes milliseconds, and they are looked at once in an iteration.
        return Batch(TrainingData(batch=batch), [] if num_following else [self._metrics.reduce()])

    def is_ahead(self) -> bool:
        """See `Batches`."""
        return bool(self._queue)

    def settle(self) -> None:
        """See `Batches`."""
        for job in self._queue:
            job.drawn.wait()

    def forget(self) -> None:
        """See `Batches`."""
        self._learner_has_begun.set()
        for job in self._queue:
            job.made.wait()
        self._queue.clear()

    def get_metrics(self) -> dict[str, float]:
        """See `Batches`."""
        return {}

    def stop(self) -> None:
        """See `Batches`."""
        self.forget()
        self._until_stopped.close()
        self._draws.stop()
        for worker in self._workers:
            worker.thread.stop()

    def _make_ahead(
        self, batch_size: int, beta: Callable[[int], float], num_updates: int, following: Sequence[int]
    ) -> None:
        """Begin with batches of the updates that follow, as far as the target network after `num_updates` is theirs."""
        for update in following[len(self._queue) : self._num_ahead]:
            if update // self._target_network_update_freq == num_updates // self._target_network_update_freq:
                self._make(batch_size, beta, update)

    def _make(self, batch_size: int, beta: Callable[[int], float], num_updates: int) -> None:
        drawn = self._draws.submit(self._replay.sample, batch_size, beta=beta(num_updates))
        worker = self._workers[num_updates % len(self._workers)]
        ready = self._learner_has_begun if self._has_begun else None
        self._queue.append(_Job(drawn, worker.begin(drawn, num_updates, ready)))
        self._has_begun = True


@contextlib.contextmanager
def _on(stream: torch.cuda.Stream) -> Iterator[None]:
    """Computes on a stream, after what the current one has been told so far, and before what it is told next."""
    before = torch.cuda.current_stream(stream.device)
    stream.wait_stream(before)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        before.wait_stream(stream)


class _Reanalysis:
    """A thread that makes train batches of windows, with a copy of the target network and buffers of its own.

    The copy reads the target network's weights where they are; it holds what is folded and compiled of them.
    """

    def __init__(self, config: Any, learner: Any, metrics: MetricsLogger) -> None:
        self._learner, self._metrics = learner, metrics
        self._connector = config.build_learner_connector(None, None, learner._device)
        self._network: Any = None
        self.thread = SideThread("reanalyze", learner._device)

    def begin(self, drawn: Task[Windows], num_updates: int, ready: threading.Event | None) -> Task[dict[str, Tensor]]:
        """Make the batch of an update once its windows are drawn, and not before it is `ready`."""
        # What the Learner's stream has been told to do to the target network comes first.
        return self.thread.submit(self._make, drawn, num_updates, ready)

    def _make(self, drawn: Task[Windows], num_updates: int, ready: threading.Event | None) -> dict[str, Tensor]:
        windows = drawn.result()
        if ready is not None:
            ready.wait()
        network = self._learner.module[DEFAULT_MODULE_ID].unwrapped().target_inference_network
        if self._network is None or self._network.network is not network.network:
            self._network = copy.copy(network)
        # The module's own counter of updates moves on meanwhile.
        target = SimpleNamespace(target_inference_network=self._network, num_updates=num_updates)
        target.unwrapped = lambda: target
        made = self._connector(
            rl_module={DEFAULT_MODULE_ID: target}, batch={}, episodes=[windows], shared_data={}, metrics=self._metrics
        )
        return made[DEFAULT_MODULE_ID]
