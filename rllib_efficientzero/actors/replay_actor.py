"""The replay in a process of its own: the driver keeps its memory small, and windows travel by reference."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from rllib_efficientzero.memory import reuse_freed_memory
from rllib_efficientzero.replay import PrioritizedReplay, Windows


class ReplayLostError(RuntimeError):
    """The replay's process ended, and its contents are lost."""


class _ReplayProcess:
    """Holds a `PrioritizedReplay`; calls are made one after the other, in the order in which the driver made them."""

    def __init__(self, settings: dict[str, Any]) -> None:
        reuse_freed_memory()  # a batch of windows is large
        self._replay = PrioritizedReplay(**settings)

    def add(self, episodes: list[Any]) -> tuple[int, int]:
        self._replay.add(episodes)
        return self.size()

    def size(self) -> tuple[int, int]:
        return len(self._replay), self._replay.num_added

    def sample(self, batch_size: int, beta: float, num_shards: int) -> tuple[Any, ...]:
        """Returns None and then the shards. The None tells the caller that it worked, without fetching a shard."""
        return None, *self._replay.sample(batch_size, beta=beta).split(num_shards)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._replay, name)(*args, **kwargs)


class RemoteReplay:
    """A `PrioritizedReplay` in a process of its own: the same calls, and the same results for the same seed."""

    def __init__(self, settings: dict[str, Any], scheduling_strategy: Any = "DEFAULT") -> None:
        """Args:
        settings: arguments of `PrioritizedReplay`.
        scheduling_strategy: where Ray starts the process.
        """
        # No restarts: the restarted process would hold an empty replay, and nobody would notice.
        actor_class = ray.remote(num_cpus=1, max_restarts=0)(_ReplayProcess)
        self._actor = actor_class.options(scheduling_strategy=scheduling_strategy).remote(settings)
        self._size, self._num_added = 0, 0
        self._unchecked: list[Any] = []
        self._get(self._actor.size.remote())

    def __len__(self) -> int:
        return self._size

    @property
    def num_added(self) -> int:
        """Steps ever added; the next position's id."""
        return self._num_added

    def add(self, episodes: Iterable[Any]) -> None:
        """As `PrioritizedReplay.add`."""
        self._size, self._num_added = self._get(self._actor.add.remote(list(episodes)))

    def sample(self, batch_size: int, *, beta: float) -> Windows:
        """As `PrioritizedReplay.sample`; the arrays lie in shared memory and cannot be written to."""
        (reference,) = self.sample_references(batch_size, beta=beta, num_shards=1)
        return self._get(reference)

    def sample_references(self, batch_size: int, *, beta: float, num_shards: int) -> list[ray.ObjectRef]:
        """Draws a sample and returns references to its shards (`Windows.split`), which only their readers fetch."""
        sampling = self._actor.sample.options(num_returns=1 + num_shards).remote(batch_size, beta, num_shards)
        self._get(sampling[0])
        return list(sampling[1:])

    def update_priorities(self, position_ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.floating[Any]]) -> None:
        """As `PrioritizedReplay.update_priorities`, but without waiting: the next call raises its errors."""
        self._unchecked.append(self._actor.call.remote("update_priorities", position_ids, priorities))

    def get_metrics(self) -> dict[str, float]:
        """As `PrioritizedReplay.get_metrics`."""
        return self._get(self._actor.call.remote("get_metrics"))

    def save(self, directory: str | pathlib.Path, *args: Any, **kwargs: Any) -> Any:
        """As `PrioritizedReplay.save`; the path must mean the same to both processes."""
        path = str(pathlib.Path(directory).absolute())
        return self._get(self._actor.call.remote("save", path, *args, **kwargs))

    def load(self, directory: str | pathlib.Path, *args: Any, **kwargs: Any) -> None:
        """As `PrioritizedReplay.load`."""
        self._get(self._actor.call.remote("load", str(pathlib.Path(directory).absolute()), *args, **kwargs))
        self._size, self._num_added = self._get(self._actor.size.remote())

    def stop(self) -> None:
        """Ends the process."""
        ray.kill(self._actor)

    def _get(self, reference: Any) -> Any:
        """Waits for a call and returns its result; raises its error, or one of earlier calls not waited for."""
        unchecked, self._unchecked = self._unchecked, []
        try:
            return ray.get([*unchecked, reference])[-1]
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise ReplayLostError(
                "the process of the replay ended, and what it held is lost: go on from the last checkpoint "
                f"({type(error).__name__})"
            ) from error
