"""Schedules over the number of updates, as pure functions."""

from __future__ import annotations

from collections.abc import Sequence


def warmup_step_decay(update: int, peak: float, *, warmup_updates: int, decay_rate: float, decay_updates: int) -> float:
    """Learning rate of the update with index `update` (from 0): linear warm-up from 0, then steps down.

    The paper: 0.2 after 1,000 updates, times 0.1 every 100,000 updates after that.
    """
    if update < warmup_updates:
        return peak * update / warmup_updates
    return peak * decay_rate ** ((update - warmup_updates) // decay_updates)


def piecewise_constant(points: Sequence[tuple[int, float]], t: int) -> float:
    """The value of the last `(start, value)` whose start is at most t; starts ascend from 0."""
    value = points[0][1]
    for start, later_value in points:
        if t < start:
            break
        value = later_value
    return value


def linear(start: float, end: float, fraction: float) -> float:
    """Interpolates from start at fraction 0 to end at fraction 1; constant outside."""
    return start + (end - start) * min(max(fraction, 0.0), 1.0)
