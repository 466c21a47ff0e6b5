"""Self-play in a thread beside the Learner of this process: an iteration's steps are played while it learns."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from typing import Any

import torch

from rllib_efficientzero.actors.self_play import SynchronousSelfPlay
from rllib_efficientzero.actors.side_thread import SideThread
from rllib_efficientzero.env.sampling import Sample, take_sample
from rllib_efficientzero.turns import given_up

PRIORITY = -1
"""A step's searches are few and small, and one waits for the other: on a GPU they go first."""


class SelfPlayBeside:
    """The EnvRunner of this process plays the steps of an iteration while their updates are made.

    These updates miss the steps of their own iteration, and nothing else: weights are not changed while it plays, and
    what it played is collected before the iteration ends. So a run repeats itself, and a checkpoint loses nothing.
    """

    def __init__(
        self, group: Any, config: Any, device: torch.device, turn: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """Args:
        group: the EnvRunnerGroup, with an EnvRunner in this process only.
        config: the algorithm's.
        device: that of the Learner.
        turn: of the threads of this process; see `Turn`.
        """
        self._env_runner = group.local_env_runner
        self._synchronous = SynchronousSelfPlay(group, config, restore=list)
        self._thread = SideThread("self-play", device, turn=turn, priority=PRIORITY)
        self._playing: Future[Sample] | None = None
        self.num_steps_awaited = 0

    # --- The interface of `SelfPlay` ---------------------------------------------------------------------------------

    def sample(self, num_steps: int, *, budget: int, num_updates: int) -> list[Sample]:
        """See `SelfPlay`. Begins to play; samples come by `collect`."""
        if self._playing is None:  # else an iteration that failed has begun to
            self._playing = self._thread.submit(take_sample, self._env_runner, num_timesteps=num_steps)
            self.num_steps_awaited = num_steps
        return []

    def collect(self) -> list[Sample]:
        """See `SelfPlay`."""
        playing, self._playing, self.num_steps_awaited = self._playing, None, 0
        if playing is None:
            return []
        with given_up():
            sample = playing.result()
        self._thread.hand_over()
        return [sample]

    def must_collect(self, num_updates: int) -> bool:
        """See `SelfPlay`."""
        return False

    def update_weights(self, learner_group: Any, num_updates: int) -> None:
        """See `SelfPlay`."""
        self._synchronous.update_weights(learner_group, num_updates)

    def forget(self) -> None:
        """See `SelfPlay`."""
        if self._playing is not None:
            with given_up():
                wait([self._playing])
        self._playing, self.num_steps_awaited = None, 0

    def stop(self) -> None:
        """See `SelfPlay`."""
        self._thread.stop()
