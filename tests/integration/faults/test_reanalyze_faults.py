"""Reanalyze actors that are killed or hang: the Learners take over at once, and the actors come back (T3)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rllib_efficientzero import EfficientZero, EfficientZeroConfig
from tests.integration.scale_helpers import tiny_config, train_until

FALL_BACK_S = 5.0

pytestmark = pytest.mark.usefixtures("shared_ray")


class Watched:
    """An algorithm whose batches are timed and told apart."""

    def __init__(self, config: EfficientZeroConfig) -> None:
        self.algo: EfficientZero = config.build_algo()
        self.seconds: list[float] = []
        self.num_made_by_actors = 0
        self._next = self.algo.batches.next
        self.algo.batches.next = self._timed_next
        self.train_until_actors_work()
        self.seconds.clear()  # the first batch was waited for as long as the actors took to start

    def _timed_next(self, *args: Any, **kwargs: Any) -> Any:
        started = time.monotonic()
        batch = self._next(*args, **kwargs)
        self.seconds.append(time.monotonic() - started)
        data = batch.training_data
        # Whole batches are made by actors, or by Learners: never one part here and another there.
        given = [part is not None for part in (data.batch, data.batch_refs, data.episodes, data.episodes_refs)]
        assert sum(given) == 1
        self.num_made_by_actors += given[0] or given[1]
        return batch

    def pids(self) -> list[int]:
        return [result.get() for result in self.algo.batches._manager.foreach_actor(lambda actor: os.getpid())]

    def train_until_all_are_back(self, num_restarts: int) -> dict[str, Any]:
        num_actors = self.algo.config.num_reanalyze_actors

        def is_back(result: dict[str, Any]) -> bool:
            state = result["reanalyze"]
            return state["restarts"] >= num_restarts and state["num_actors_in_service"] == num_actors

        return train_until(self.algo, is_back)

    def train_until_actors_work(self) -> None:
        num_before = self.num_made_by_actors
        train_until(self.algo, lambda result: self.num_made_by_actors >= num_before + 5)

    def kill_in_mid_run(self, pid: int, after_s: float) -> None:
        """Kills a process while training goes on."""
        timer = threading.Timer(after_s, os.kill, (pid, signal.SIGKILL))
        timer.start()
        while timer.is_alive():
            self.algo.train()


def kill_actors(config: EfficientZeroConfig, num_rounds: int, measured: Callable[[str], None]) -> None:
    rng = np.random.default_rng(0)
    watched = Watched(config)
    for num_restarts in range(1, num_rounds + 1):
        watched.train_until_actors_work()
        watched.kill_in_mid_run(int(rng.choice(watched.pids())), after_s=rng.uniform(0.1, 0.6))
        result = watched.train_until_all_are_back(num_restarts)
        assert result["reanalyze"]["restarts"] == num_restarts
    assert max(watched.seconds) < FALL_BACK_S
    assert result["learners"]["default_policy"]["num_non_finite_updates_lifetime"] == 0
    assert 0 < result["reanalyze"]["num_inline_batches_lifetime"] < result["num_updates_lifetime"]
    watched.train_until_actors_work()
    watched.algo.stop()
    measured(f"longest wait for a batch {max(watched.seconds):.2f} s, of {len(watched.seconds)}; {num_rounds} restarts")


def test_a_killed_actor_is_stood_in_for_and_comes_back(measured: Callable[[str], None]) -> None:
    kill_actors(tiny_config().reanalyze(num_actors=2, prefetch=2), num_rounds=1, measured=measured)


@pytest.mark.long
def test_actors_killed_ten_times_beside_two_learners(measured: Callable[[str], None]) -> None:
    config = tiny_config(target_network_update_freq=2).learners(num_learners=2)
    kill_actors(config.reanalyze(num_actors=2, prefetch=2), num_rounds=10, measured=measured)


def hang(actor: Any) -> None:
    time.sleep(3600)


def test_the_only_actor_hangs(measured: Callable[[str], None]) -> None:
    """As long as it is away, the run is one without actors."""
    watched = Watched(tiny_config().reanalyze(num_actors=1, timeout_s=3))
    (actor,) = watched.algo.batches._manager.actors().values()
    actor.apply.remote(hang)
    num_before = watched.algo.num_updates
    result = watched.train_until_all_are_back(1)
    assert result["num_updates_lifetime"] > num_before
    assert 3 <= max(watched.seconds) < FALL_BACK_S
    watched.train_until_actors_work()
    watched.algo.stop()
    measured(f"longest wait for a batch {max(watched.seconds):.2f} s with reanalyze_timeout_s=3")


def test_an_error_in_an_actor_is_raised_here() -> None:
    """An actor that is started again for ever, because of a mistake, would hide it."""
    watched = Watched(tiny_config().reanalyze(num_actors=1))

    def fail(actor: Any) -> None:
        actor._connector = None

    watched.algo.batches._manager.foreach_actor(fail)
    with pytest.raises(TypeError, match="not callable"):
        watched.train_until_all_are_back(1)
    watched.algo.stop()
