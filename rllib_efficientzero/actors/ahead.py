"""Reanalysis in threads beside this process's Learner: they make the next batches while it learns."""

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
from rllib_efficientzero.actors.thread_switching import switching_often
from rllib_efficientzero.models.cuda_graphs import own_stream
from rllib_efficientzero.replay import Windows

MAX_WORKERS = 2
"""The most threads that reanalyze. Two keep a GPU busy; each needs memory for its searches."""


@dataclasses.dataclass(frozen=True)
class _Job:
    """A batch that is being made: the draw of its windows, and their reanalysis into tensors."""

    drawn: Task[Windows]
    made: Task[dict[str, Tensor]]


class BatchesAhead:
    """Makes train batches for this process's Learner ahead of time, with the connector that the Learner would run.

    A batch made n updates ahead does not know the priorities of the last n updates. The first batches of an iteration,
    started before its self-play, do not contain the steps of that self-play. Nothing else differs, so that runs with
    the same seed stay equal: each batch is made by the target network of its own update, never across a copy of it. Nor
    is a batch made across the end of an iteration, so that a checkpoint loses none.

    One thread draws the windows and one or two others reanalyze them. On a GPU each thread has its own stream: while
    one of them, or the Learner, waits for the host, the kernels of the others run.
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
        self._metrics._threading_lock = threading.RLock()  # RLlib's locks nothing, and two threads log.
        device = learner._device
        self._front = own_stream(device, priority=-1) if device.type == "cuda" else None
        self._draws = SideThread("draw-windows", device)
        num_workers = min(self._num_ahead, MAX_WORKERS)
        self._workers = [_Reanalysis(config, learner, self._metrics) for _ in range(num_workers)]
        self._queue: collections.deque[_Job] = collections.deque()
        # Functions compile at their first call, which must happen in one thread at a time: the first batch is
        # reanalyzed alone, and the next ones wait until the Learner has made its first update.
        self._has_begun = self._has_handed_over = False
        self._is_first_update_over = threading.Event()
        self._until_stopped = contextlib.ExitStack()
        self._until_stopped.enter_context(switching_often())

    # --- The interface of `Batches` ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def foreground(self) -> Iterator[None]:
        """See `Batches`. On a GPU the block's kernels run on a stream of high priority."""
        try:
            with contextlib.nullcontext() if self._front is None else _on(self._front):
                yield
        except BaseException:
            self._is_first_update_over.set()  # A worker may wait for it, and Python joins all threads when it exits.
            raise

    def prefetch(self, batch_size: int, *, beta: Callable[[int], float], num_updates: int, num_following: int) -> None:
        """See `Batches`."""
        self._make_ahead(batch_size, beta, num_updates, range(num_updates, num_updates + num_following))

    def next(self, batch_size: int, *, beta: Callable[[int], float], num_updates: int, num_following: int) -> Batch:
        """See `Batches`."""
        if self._has_handed_over:
            self._is_first_update_over.set()
        if not self._queue:
            self._make(batch_size, beta, num_updates)
        job = self._queue.popleft()
        tensors = job.made.result()
        self._has_handed_over = True
        self._make_ahead(batch_size, beta, num_updates, range(num_updates + 1, num_updates + 1 + num_following))
        batch = MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(tensors)}, env_steps=batch_size)
        # Reducing metrics takes milliseconds, and they are read once per iteration.
        return Batch(TrainingData(batch=batch), [] if num_following else [self._metrics.reduce()])

    def has_unused(self) -> bool:
        """See `Batches`."""
        return bool(self._queue)

    def wait_for_draws(self) -> None:
        """See `Batches`."""
        for job in self._queue:
            job.drawn.wait()

    def discard(self) -> None:
        """See `Batches`."""
        self._is_first_update_over.set()
        for job in self._queue:
            job.made.wait()
        self._queue.clear()

    def get_metrics(self) -> dict[str, float]:
        """See `Batches`."""
        return {}

    def stop(self) -> None:
        """See `Batches`."""
        self.discard()
        self._until_stopped.close()
        self._draws.stop()
        for worker in self._workers:
            worker.thread.stop()

    def _make_ahead(
        self, batch_size: int, beta: Callable[[int], float], num_updates: int, following: Sequence[int]
    ) -> None:
        """Starts the batches of the `following` updates, except those that need a later copy of the target network."""
        for update in following[len(self._queue) : self._num_ahead]:
            if update // self._target_network_update_freq == num_updates // self._target_network_update_freq:
                self._make(batch_size, beta, update)

    def _make(self, batch_size: int, beta: Callable[[int], float], num_updates: int) -> None:
        drawn = self._draws.submit(self._replay.sample, batch_size, beta=beta(num_updates))
        worker = self._workers[num_updates % len(self._workers)]
        ready = self._is_first_update_over if self._has_begun else None
        self._queue.append(_Job(drawn, worker.begin(drawn, num_updates, ready)))
        self._has_begun = True


@contextlib.contextmanager
def _on(stream: torch.cuda.Stream) -> Iterator[None]:
    """Runs the block on a stream, after the work queued on the current stream so far and before its later work."""
    before = torch.cuda.current_stream(stream.device)
    stream.wait_stream(before)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        before.wait_stream(stream)


class _Reanalysis:
    """A thread that makes train batches from windows, with its own inference copy of the target network and buffers.

    The copy shares the target network's weights; the folded weights and compiled functions are its own.
    """

    def __init__(self, config: Any, learner: Any, metrics: MetricsLogger) -> None:
        self._learner, self._metrics = learner, metrics
        self._connector = config.build_learner_connector(None, None, learner._device)
        self._network: Any = None
        self.thread = SideThread("reanalyze", learner._device)

    def begin(self, drawn: Task[Windows], num_updates: int, ready: threading.Event | None) -> Task[dict[str, Tensor]]:
        """Starts making an update's batch; the thread waits for its windows, and for `ready` if given."""
        # `submit` orders it after the work that the Learner's stream has queued, such as a copy of the target network.
        return self.thread.submit(self._make, drawn, num_updates, ready)

    def _make(self, drawn: Task[Windows], num_updates: int, ready: threading.Event | None) -> dict[str, Tensor]:
        windows = drawn.result()
        if ready is not None:
            ready.wait()
        network = self._learner.module[DEFAULT_MODULE_ID].unwrapped().target_inference_network
        if self._network is None or self._network.network is not network.network:
            self._network = copy.copy(network)
        # Not the module itself: the Learner increments its counter of updates in the meantime.
        target = SimpleNamespace(target_inference_network=self._network, num_updates=num_updates)
        target.unwrapped = lambda: target
        made = self._connector(
            rl_module={DEFAULT_MODULE_ID: target}, batch={}, episodes=[windows], shared_data={}, metrics=self._metrics
        )
        return made[DEFAULT_MODULE_ID]
