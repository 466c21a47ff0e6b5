"""Sources of train batches: their interface, and the simplest one, whose windows the Learners reanalyze themselves."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import ray
from ray.rllib.core.learner.training_data import TrainingData

from rllib_efficientzero.actors.replay_actor import RemoteReplay


@dataclasses.dataclass(frozen=True)
class Batch:
    """The data of one update."""

    training_data: TrainingData
    results: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Metrics of reanalysis outside the Learners, in the form of a Learner's results."""


class Batches(Protocol):
    """A source of batches."""

    def foreground(self) -> AbstractContextManager[None]:
        """Returns a context for self-play and gradient steps, whose work is to run before batches made in advance."""

    def prefetch(self, batch_size: int, *, beta: Callable[[int], float], num_updates: int, num_following: int) -> None:
        """Starts making the batches for the next `num_following` updates, if this source makes batches in advance.

        Called before self-play, with the arguments of `next`.
        """

    def next(self, batch_size: int, *, beta: Callable[[int], float], num_updates: int, num_following: int) -> Batch:
        """Returns the batch for the next update, and may start making those of the updates that follow.

        Args:
            batch_size: see `PrioritizedReplay.sample`.
            beta: the exponent of the importance weights as a function of the number of updates made.
            num_updates: updates made so far.
            num_following: updates of this iteration after the next one.
        """

    def has_unused(self) -> bool:
        """Whether batches have been started that must be used within this iteration."""

    def wait_for_draws(self) -> None:
        """Waits until no started draw still reads the replay; called before the replay changes."""

    def discard(self) -> None:
        """Drops the batches that have been started: after a restore, and when an iteration leaves some unused."""

    def get_metrics(self) -> dict[str, float]:
        """Returns what is logged under `reanalyze/`; names ending in `lifetime` count since the last call."""

    def stop(self) -> None:
        """Ends the processes and threads that it started."""


class InlineBatches:
    """Hands out windows of the replay as they are: the Learners' connector reanalyzes them before each update."""

    def __init__(self, replay: Any, num_learners: int) -> None:
        """Args:
        replay: a `PrioritizedReplay` or `RemoteReplay`.
        num_learners: Learners in processes of their own; 0 for one in this process.
        """
        self._replay = replay
        self._num_learners = num_learners

    def foreground(self) -> AbstractContextManager[None]:
        """See `Batches`. Nothing runs beside the Learners here, so there is nothing to put first."""
        return contextlib.nullcontext()

    def prefetch(self, batch_size: int, *, beta: Callable[[int], float], num_updates: int, num_following: int) -> None:
        """See `Batches`. Does nothing: windows are drawn when `next` is called."""

    def next(self, batch_size: int, *, beta: Callable[[int], float], num_updates: int, num_following: int) -> Batch:
        """See `Batches`."""
        exponent = beta(num_updates)
        if self._num_learners == 0:
            return Batch(TrainingData(episodes=[self._replay.sample(batch_size, beta=exponent)]))
        # Sharded here: RLlib would sort and cut the episodes to make shards.
        return Batch(TrainingData(episodes_refs=draw_shards(self._replay, batch_size, exponent, self._num_learners)))

    def has_unused(self) -> bool:
        """See `Batches`."""
        return False

    def wait_for_draws(self) -> None:
        """See `Batches`."""

    def discard(self) -> None:
        """See `Batches`."""

    def get_metrics(self) -> dict[str, float]:
        """See `Batches`."""
        return {}

    def stop(self) -> None:
        """See `Batches`."""


def draw_shards(replay: Any, batch_size: int, beta: float, num_shards: int) -> list[ray.ObjectRef]:
    """Draws a sample and returns references to its shards."""
    if isinstance(replay, RemoteReplay):
        return replay.sample_references(batch_size, beta=beta, num_shards=num_shards)
    return [ray.put(shard) for shard in replay.sample(batch_size, beta=beta).split(num_shards)]
