"""Simulates the training pipeline: its environment steps per second and its bottleneck, by the number of processes.

The driver is one thread that requests, stores, draws, waits and learns in the order of `EfficientZero.training_step`.
The simulation does the same on a simulated clock. EnvRunners and reanalyze actors are servers that work in parallel to
the driver. The time of every service is its measured time with log-normal variation.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections import deque


@dataclasses.dataclass(frozen=True)
class ServiceTimes:
    """Seconds of each kind of work, measured alone."""

    play_step: float
    """one environment step with its search, in an EnvRunner"""
    request: float
    """sending a request to one EnvRunner and receiving its answer, in the driver"""
    add_step: float
    """storing one step"""
    sample: float
    """drawing the windows of a batch"""
    transfer: float
    """writing a batch to shared memory, or reading it from there"""
    reanalyze_fixed: float
    reanalyze_per_window: float
    """computing the targets of a batch: a fixed time, and a time per window"""
    learn_fixed: float
    learn_per_window: float
    """a gradient step on a batch: a fixed time, and a time per window"""
    reduce_gradients: float
    """summing the gradients of two Learners; a ring of more takes up to twice that"""
    priorities: float
    """writing a batch's priorities back"""
    publish: float
    """sending the newest weights to the EnvRunners"""


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """The numbers of processes, and the settings that the simulation needs."""

    num_runners: int
    num_learners: int = 1
    num_reanalyze_actors: int = 0
    asynchronous: bool = False
    fragment: int = 20
    """environment steps in one answer of an EnvRunner"""
    batch: int = 256
    replay_ratio: float = 1.0
    self_play_update_freq: int = 100


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a simulated run; `*_busy` are shares of its time."""

    steps_per_s: float
    runners_busy: float
    learners_busy: float
    reanalyze_busy: float
    driver_busy: float

    @property
    def limited_by(self) -> str:
        """The part with the largest share of busy time."""
        busy = {
            "EnvRunners": self.runners_busy,
            "Learners": self.learners_busy,
            "reanalyze actors": self.reanalyze_busy,
            "driver": self.driver_busy,
        }
        return max(busy, key=lambda role: busy[role])


class Simulation:
    """A simulated run of a pipeline."""

    def __init__(self, times: ServiceTimes, pipeline: Pipeline, *, variation: float = 0.2, seed: int = 0) -> None:
        """`variation` is the standard deviation of a service's time, relative to its mean."""
        self._times, self._pipeline = times, pipeline
        self._random = random.Random(seed)
        self._sigma = math.sqrt(math.log1p(variation**2))
        self._now = 0.0
        self._busy = {"runners": 0.0, "learners": 0.0, "reanalyze": 0.0, "driver": 0.0}
        self._answers_at = [0.0] * pipeline.num_runners
        self._actors_free_at = [0.0] * pipeline.num_reanalyze_actors
        self._batches_at: deque[float] = deque()
        self._steps = self._updates = 0

    def run(self, num_steps: int) -> Outcome:
        """Simulates until so many steps are stored and learned from."""
        pipeline = self._pipeline
        if pipeline.asynchronous:
            for runner in range(pipeline.num_runners):
                self._ask(runner)
        while self._steps < num_steps:
            self._collect()
            while self._updates + 1 <= pipeline.replay_ratio * self._steps:
                self._update()
        servers = {
            "runners": pipeline.num_runners,
            "learners": 1,  # all are busy at the same time
            "reanalyze": max(1, pipeline.num_reanalyze_actors),
            "driver": 1,
        }
        shares = {f"{role}_busy": self._busy[role] / self._now / count for role, count in servers.items()}
        return Outcome(self._steps / self._now, **shares)

    def _collect(self) -> None:
        """Takes the answers of all EnvRunners; if asynchronous, waits for one and takes those that are ready."""
        runners = range(self._pipeline.num_runners)
        if self._pipeline.asynchronous:
            self._now = max(self._now, min(self._answers_at))
            answered = [runner for runner in runners if self._answers_at[runner] <= self._now]
        else:
            for runner in runners:
                self._ask(runner)
            self._now = max(self._now, *self._answers_at)
            answered = list(runners)
        for runner in answered:
            self._drive(self._times.add_step * self._pipeline.fragment)
            self._steps += self._pipeline.fragment
            if self._pipeline.asynchronous:
                self._ask(runner)

    def _ask(self, runner: int) -> None:
        self._drive(self._times.request)
        seconds = self._spread(self._times.play_step * self._pipeline.fragment)
        self._busy["runners"] += seconds
        self._answers_at[runner] = self._now + seconds

    def _update(self) -> None:
        times, pipeline = self._times, self._pipeline
        share = pipeline.batch / pipeline.num_learners
        learn = times.learn_fixed + times.learn_per_window * share
        if pipeline.num_reanalyze_actors:
            self._wait_for_batch()
        else:
            self._drive(times.sample + (times.transfer if pipeline.num_learners > 1 else 0.0))
            learn += times.reanalyze_fixed + times.reanalyze_per_window * share
        # All Learners wait for the slowest.
        seconds = max(self._spread(learn) for _ in range(pipeline.num_learners))
        seconds += times.reduce_gradients * 2 * (pipeline.num_learners - 1) / pipeline.num_learners
        self._now += seconds
        self._busy["learners"] += seconds
        self._drive(times.priorities)
        self._updates += 1
        if self._updates % pipeline.self_play_update_freq == 0:
            self._drive(times.publish)

    def _wait_for_batch(self) -> None:
        """Waits for the oldest requested batch, after requesting as many further ones as there are actors."""
        times, pipeline = self._times, self._pipeline
        while len(self._batches_at) <= pipeline.num_reanalyze_actors:
            self._drive(times.sample + times.transfer)
            actor = min(range(pipeline.num_reanalyze_actors), key=lambda index: self._actors_free_at[index])
            work = times.reanalyze_fixed + times.reanalyze_per_window * pipeline.batch + times.transfer
            seconds = self._spread(work)
            self._busy["reanalyze"] += seconds
            self._actors_free_at[actor] = max(self._now, self._actors_free_at[actor]) + seconds
            self._batches_at.append(self._actors_free_at[actor])
        self._now = max(self._now, self._batches_at.popleft())
        self._drive(times.transfer)

    def _drive(self, seconds: float) -> None:
        self._now += seconds
        self._busy["driver"] += seconds

    def _spread(self, mean: float) -> float:
        return mean * self._random.lognormvariate(-(self._sigma**2) / 2, self._sigma)
