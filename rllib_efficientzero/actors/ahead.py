"""Reanalysis in threads beside the Learner of this process: the next batches are made while it learns."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import SimpleNamespace
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from torch import Tensor

from rllib_efficientzero.actors.batches import Batch
from rllib_efficientzero.replay import Windows


@dataclasses.dataclass(frozen=True)
class _Job:
    """A batch in the making: its windows, and the tensors that are made of them."""

    drawn: Future[Windows]
    made: Future[dict[str, Tensor]]


class BatchesAhead:
    """Train batches for the Learner of this process, made while it is at those before, by the same connector.

    A batch that is made n updates ahead misses the priorities of n updates. That is all, and so a run repeats itself:
    no batch is made across a copy of the target network, so that it is made by that of its own update; and none across
    the end of an iteration, so that new steps are seen and nothing is lost with a checkpoint.

    Windows are drawn in one thread and reanalyzed in another. On a GPU the latter has a stream of its own. Kernels of
    its and of the Learner's share the device, and while one of them waits for the host the other goes on.
    """

    def __init__(self, config: Any, replay: Any, learner: Any) -> None:
        """Args:
        config: the algorithm's.
        replay: a `PrioritizedReplay` or `RemoteReplay`.
        learner: a Learner in this process.
        """
        self._replay, self._learner = replay, learner
        self._device: torch.device = learner._device
        self._connector = config.build_learner_connector(None, None, self._device)
        self._num_ahead = config.prefetched_batches()
        self._target_network_update_freq = config.target_network_update_freq
        self._metrics = MetricsLogger()
        self._draws = ThreadPoolExecutor(max_workers=1, thread_name_prefix="draw-windows")
        self._reanalyses = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reanalyze")
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._queue: collections.deque[_Job] = collections.deque()
        # What is compiled at its first call is compiled by one thread at a time: reanalysis first, then the Learner.
        self._has_begun = False
        self._learner_has_begun = threading.Event()

    # --- The interface of `Batches` ----------------------------------------------------------------------------------

    def next(self, batch_size: int, *, beta: Callable[[int], float], num_updates: int, num_following: int) -> Batch:
        """See `Batches`."""
        if self._has_begun:
            self._learner_has_begun.set()
        if not self._queue:
            self._begin(batch_size, beta, num_updates)
        self._has_begun = True
        tensors = self._queue.popleft().made.result()
        if self._stream is not None:
            learners_stream = torch.cuda.current_stream(self._device)
            learners_stream.wait_stream(self._stream)
            for tensor in tensors.values():
                tensor.record_stream(learners_stream)  # else its memory would be given away too early
        for update in range(num_updates + 1 + len(self._queue), num_updates + 1 + min(num_following, self._num_ahead)):
            if update // self._target_network_update_freq == num_updates // self._target_network_update_freq:
                self._begin(batch_size, beta, update)
        batch = MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(tensors)}, env_steps=batch_size)
        # To reduce metrics takes milliseconds, and they are looked at once in an iteration.
        return Batch(TrainingData(batch=batch), [] if num_following else [self._metrics.reduce()])

    def is_ahead(self) -> bool:
        """See `Batches`."""
        return bool(self._queue)

    def settle(self) -> None:
        """See `Batches`."""
        wait([job.drawn for job in self._queue])

    def forget(self) -> None:
        """See `Batches`."""
        self._learner_has_begun.set()
        wait([job.made for job in self._queue])
        self._queue.clear()

    def get_metrics(self) -> dict[str, float]:
        """See `Batches`."""
        return {}

    def stop(self) -> None:
        """See `Batches`."""
        self.forget()
        self._draws.shutdown()
        self._reanalyses.shutdown()

    # --- In the threads ----------------------------------------------------------------------------------------------

    def _begin(self, batch_size: int, beta: Callable[[int], float], num_updates: int) -> None:
        drawn = self._draws.submit(self._replay.sample, batch_size, beta=beta(num_updates))
        # What the Learner's stream has been told to do to the target network comes first.
        told = None if self._stream is None else torch.cuda.current_stream(self._device).record_event()
        ready = self._learner_has_begun if self._has_begun else None
        self._queue.append(_Job(drawn, self._reanalyses.submit(self._reanalyze, drawn, num_updates, told, ready)))

    def _reanalyze(
        self,
        drawn: Future[Windows],
        num_updates: int,
        told: torch.cuda.Event | None,
        ready: threading.Event | None,
    ) -> dict[str, Tensor]:
        windows = drawn.result()
        if ready is not None:
            ready.wait()
        # The module's own counter moves on meanwhile.
        module = self._learner.module[DEFAULT_MODULE_ID].unwrapped()
        target = SimpleNamespace(target_inference_network=module.target_inference_network, num_updates=num_updates)
        target.unwrapped = lambda: target
        with self._own_stream(told):
            made = self._connector(
                rl_module={DEFAULT_MODULE_ID: target},
                batch={},
                episodes=[windows],
                shared_data={},
                metrics=self._metrics,
            )
        return made[DEFAULT_MODULE_ID]

    def _own_stream(self, after: torch.cuda.Event | None) -> contextlib.AbstractContextManager[Any]:
        if self._stream is None or after is None:
            return contextlib.nullcontext()
        self._stream.wait_event(after)
        return torch.cuda.stream(self._stream)
