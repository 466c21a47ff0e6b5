"""Reanalysis in a thread beside the Learner of this process: the next batch is made while this one is learned from."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from torch import Tensor

from rllib_efficientzero.actors.batches import Batch


@dataclasses.dataclass(frozen=True)
class _Job:
    """A batch in the making."""

    made: Future[dict[str, Tensor]]
    is_drawn: threading.Event
    """its windows are, and the replay may change"""


class BatchesAhead:
    """Train batches for the Learner of this process, the next of which is made meanwhile, by the same connector.

    A batch that is made ahead does not see the priorities of the update before. That is all it misses, and so a run
    repeats itself: it is made by the target network of its own update, since none is made across a copy of that
    network; and none across the end of an iteration, so that new steps are seen and nothing is lost with a checkpoint.

    On a GPU the thread has a stream of its own. Kernels of both streams share the device, and while one of them waits
    for the host the other goes on.
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
        self._target_network_update_freq = config.target_network_update_freq
        self._metrics = MetricsLogger()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reanalyze")
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._ahead: _Job | None = None

    # --- The interface of `Batches` ----------------------------------------------------------------------------------

    def next(self, batch_size: int, *, beta: Callable[[int], float], num_updates: int, more: bool) -> Batch:
        """See `Batches`."""
        job, self._ahead = self._ahead or self._begin(batch_size, beta(num_updates), num_updates), None
        tensors = job.made.result()
        if self._stream is not None:
            learners_stream = torch.cuda.current_stream(self._device)
            learners_stream.wait_stream(self._stream)
            for tensor in tensors.values():
                tensor.record_stream(learners_stream)  # else its memory would be given away too early
        if more and (num_updates + 1) % self._target_network_update_freq != 0:
            self._ahead = self._begin(batch_size, beta(num_updates + 1), num_updates + 1)
        batch = MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(tensors)}, env_steps=batch_size)
        # To reduce metrics takes milliseconds, and they are looked at once in an iteration.
        return Batch(TrainingData(batch=batch), [] if more else [self._metrics.reduce()])

    def is_ahead(self) -> bool:
        """See `Batches`."""
        return self._ahead is not None

    def settle(self) -> None:
        """See `Batches`."""
        if self._ahead is not None:
            self._ahead.is_drawn.wait()

    def forget(self) -> None:
        """See `Batches`."""
        job, self._ahead = self._ahead, None
        if job is not None:
            job.made.exception()  # waits

    def get_metrics(self) -> dict[str, float]:
        """See `Batches`."""
        return {}

    def stop(self) -> None:
        """See `Batches`."""
        self.forget()
        self._thread.shutdown()

    # --- In the thread -----------------------------------------------------------------------------------------------

    def _begin(self, batch_size: int, beta: float, num_updates: int) -> _Job:
        is_drawn = threading.Event()
        if self._stream is not None:
            # What the Learner's stream has been told to do to the target network comes first.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        made = self._thread.submit(self._make, batch_size, beta, num_updates, is_drawn)
        return _Job(made, is_drawn)

    def _make(
        self, batch_size: int, beta: float, num_updates: int, is_drawn: threading.Event
    ) -> dict[str, Tensor]:
        try:
            windows = self._replay.sample(batch_size, beta=beta)
        finally:
            is_drawn.set()
        # The module's own counter moves on meanwhile.
        module = self._learner.module[DEFAULT_MODULE_ID].unwrapped()
        target = SimpleNamespace(
            target_inference_network=module.target_inference_network, num_updates=num_updates
        )
        target.unwrapped = lambda: target
        stream = contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with stream:
            made = self._connector(
                rl_module={DEFAULT_MODULE_ID: target},
                batch={},
                episodes=[windows],
                shared_data={},
                metrics=self._metrics,
            )
        return made[DEFAULT_MODULE_ID]
