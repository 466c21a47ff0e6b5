"""Where the next update's batch comes from: here, windows that every Learner reanalyzes itself."""

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
    """What one update learns from."""

    training_data: TrainingData
    results: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Metrics of those who made it elsewhere, as a Learner's results."""


class Batches(Protocol):
    """A source of batches."""

    def in_front(self) -> AbstractContextManager[None]:
        """Entered for self-play and the Learner, which are waited for: they come before what is made meanwhile."""

    def begin(self, batch_size: int, *, beta: Callable[[int], float], num_updates: int, num_following: int) -> None:
        """Makes batches of the next `num_following` updates meanwhile, if it can; called before steps are sampled, with
        the arguments of `next`."""

    def next(self, batch_size: int, *, beta: Callable[[int], float], num_updates: int, num_following: int) -> Batch:
        """The batch of the update after `num_updates`.

        Args:
            batch_size: see `PrioritizedReplay.sample`.
            beta: by the number of updates made; see there.
            num_updates: updates made so far.
            num_following: updates that follow in this iteration.
        """

    def is_ahead(self) -> bool:
        """Whether a batch was begun that would be lost with this iteration."""

    def settle(self) -> None:
        """Waits until nothing reads of the replay what is about to change."""

    def forget(self) -> None:
        """Drops what was made of a state that no longer holds, after a restore."""

    def get_metrics(self) -> dict[str, float]:
        """What is logged under `reanalyze/`; of names that end in `lifetime`, what has come since the last call."""

    def stop(self) -> None:
        """Ends the processes that it started."""


class InlineBatches:
    """Windows of the replay, as they are: the Learners' connector reanalyzes them before each update."""

    def __init__(self, replay: Any, num_learners: int) -> None:
        """Args:
        replay: a `PrioritizedReplay` or `RemoteReplay`.
        num_learners: Learners in processes of their own; 0 for one in this process.
        """
        self._replay = replay
        self._num_learners = num_learners

    def in_front(self) -> AbstractContextManager[None]:
        """See `Batches`. Nobody works beside the Learners."""
        return contextlib.nullcontext()

    def begin(self, batch_size: int, *, beta: Callable[[int], float], num_updates: int, num_following: int) -> None:
        """See `Batches`. Windows are drawn when they are asked for."""

    def next(self, batch_size: int, *, beta: Callable[[int], float], num_updates: int, num_following: int) -> Batch:
        """See `Batches`."""
        exponent = beta(num_updates)
        if self._num_learners == 0:
            return Batch(TrainingData(episodes=[self._replay.sample(batch_size, beta=exponent)]))
        # RLlib would sort and cut episodes to shard them, so the shards are ours.
        return Batch(TrainingData(episodes_refs=draw_shards(self._replay, batch_size, exponent, self._num_learners)))

    def is_ahead(self) -> bool:
        """See `Batches`."""
        return False

    def settle(self) -> None:
        """See `Batches`."""

    def forget(self) -> None:
        """See `Batches`."""

    def get_metrics(self) -> dict[str, float]:
        """See `Batches`."""
        return {}

    def stop(self) -> None:
        """See `Batches`."""


def draw_shards(replay: Any, batch_size: int, beta: float, num_shards: int) -> list[ray.ObjectRef]:
    """References to the shards of a sample."""
    if isinstance(replay, RemoteReplay):
        return replay.sample_references(batch_size, beta=beta, num_shards=num_shards)
    return [ray.put(shard) for shard in replay.sample(batch_size, beta=beta).split(num_shards)]
