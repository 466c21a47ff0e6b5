"""Estimates a run's time on this machine's CPU, if it is otherwise idle, from a few timed network calls."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from rllib_efficientzero.models import EfficientZeroNetwork, observation_planes
from rllib_efficientzero.targets.reanalyze import ReanalyzeConfig
from rllib_efficientzero.threads import one_thread

BACKWARD_FACTOR = 3.0
"""A forward and backward pass together cost about as much as this many forward passes."""


@torch.inference_mode()
def seconds_per_call(network: EfficientZeroNetwork, stacked_shape: tuple[int, ...]) -> tuple[float, float]:
    """Times the network: seconds per observation encoded, and per simulated step, in batches of the sizes of a search.

    Takes about a second.
    """
    frames = torch.zeros(16, *stacked_shape, dtype=torch.uint8 if len(stacked_shape) == 4 else torch.float32)
    planes = observation_planes(frames)
    root = network.eval().initial_inference(planes)
    latent, hidden = root.latent.repeat_interleave(4, dim=0), root.reward_hidden.repeat_interleave(4, dim=0)
    action = torch.zeros(len(latent), dtype=torch.int64)
    with one_thread():
        encode = _fastest(lambda: network.initial_inference(planes)) / len(planes)
        simulate = _fastest(lambda: network.recurrent_inference(latent, hidden, action)) / len(latent)
    return encode, simulate


def run_seconds(
    encode: float, simulate: float, config: ReanalyzeConfig, *, batch_size: int, env_steps: int, updates: int
) -> float:
    """Seconds of a whole run, counting only the network calls.

    Args:
        encode: seconds per encoded observation.
        simulate: seconds per simulated step.
        config: how train batches are made, which decides how much an update searches.
        batch_size: positions per update.
        env_steps: environment steps, each with one search.
        updates: gradient steps.
    """
    simulations = config.search.num_simulations
    acting = encode + simulations * simulate
    unrolled = config.unroll_steps + 1
    searched = config.reanalyze_ratio * unrolled
    if config.value_target == "root":
        searched = unrolled + config.td_steps  # the bootstrap positions of the returns are searched, too
    targets = (unrolled + config.td_steps) * encode + searched * simulations * simulate
    learning = BACKWARD_FACTOR * (encode + config.unroll_steps * simulate) + config.unroll_steps * encode
    return env_steps * acting + updates * batch_size * (targets + learning)


def describe(seconds: float) -> str:
    """Formats a duration in a suitable unit."""
    for unit, size in (("days", 86_400.0), ("hours", 3_600.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    minutes = max(1, round(seconds / 60))
    return f"{minutes} minute{'s' if minutes > 1 else ''}"


def _fastest(call: Callable[[], object], repetitions: int = 3) -> float:
    """The fastest repetition's CPU time; wall clock time would be several times as long beside other jobs."""
    call()  # the first call allocates
    durations = []
    for _ in range(repetitions):
        started = time.thread_time()
        call()
        durations.append(time.thread_time() - started)
    return min(durations)
