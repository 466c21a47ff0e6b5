"""Explains why a run diverged: which metric stood out first, and which positions the last updates learned from."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

OUTLIER_FACTOR = 30.0
"""A metric stands out if its magnitude exceeds this many times the median of its earlier magnitudes."""
MIN_HISTORY = 10
"""Values needed for a median."""
NUM_DESCRIBED = 20
"""Number of last updates that are described in full."""


class DivergenceWatch:
    """Keeps the metrics of the last updates, to explain a failure.

    Example:
        >>> watch = DivergenceWatch()
        >>> for update in range(20):
        ...     watch.record(update, {"gradient_norm": np.array(1.0 if update < 17 else 1e4)})
        >>> watch.first_symptom()
        'gradient_norm showed it first: 1e+04 at update 17, where its median had been 1'
    """

    def __init__(self, window: int = 500) -> None:
        self._updates: collections.deque[tuple[int, dict[str, np.ndarray]]] = collections.deque(maxlen=window)
        self._position_ids: collections.deque[np.ndarray | None] = collections.deque(maxlen=min(window, NUM_DESCRIBED))

    def record(self, update: int, metrics: Mapping[str, np.ndarray], position_ids: np.ndarray | None = None) -> None:
        """Records the metrics of one update, in the order in which they were computed.

        Args:
            update: updates made before it; after a skipped update, the next one has the same number.
            metrics: name -> `[]`.
            position_ids: `[B]`, of the positions it learned from.
        """
        self._updates.append((update, dict(metrics)))
        self._position_ids.append(position_ids)

    def last_updates(self) -> list[dict[str, Any]]:
        """Number, metrics and position ids of the last updates, JSON-able: non-finite numbers are strings."""
        last = list(self._updates)[-len(self._position_ids) :]
        return [
            {
                "update": update,
                "metrics": {name: _json_number(float(value)) for name, value in metrics.items()},
                "position_ids": [] if ids is None else [int(id_) for id_ in ids],
            }
            for (update, metrics), ids in zip(last, self._position_ids, strict=True)
        ]

    def first_symptom(self) -> str:
        """A sentence, without its full stop, on the metric that was first to stand out or to become non-finite.

        Of several in the same update it is the one recorded first, as the others were computed from it.
        """
        names = dict.fromkeys(name for _, metrics in self._updates for name in metrics)
        onsets = [onset for name in names if (onset := self._onset(name)) is not None]
        if not onsets:
            return f"no recorded metric stood out within the last {len(self._updates)} updates"
        return min(onsets, key=lambda onset: onset[0])[1]

    def _onset(self, name: str) -> tuple[int, str] | None:
        """The first update at which a metric stood out or was non-finite, and a sentence on it; else None."""
        recorded = [(update, metrics[name]) for update, metrics in self._updates if name in metrics]
        with np.errstate(over="ignore"):
            values = np.array([value for _, value in recorded], np.float32)
        for index, ((update, _), value) in enumerate(zip(recorded, values, strict=True)):
            before = values[:index]
            if not np.isfinite(value):
                usual = f", where its median had been {np.median(before):.3g}" if index else ""
                return update, f"{name} showed it first: {value} at update {update}{usual}"
            if index >= MIN_HISTORY and abs(value) > OUTLIER_FACTOR * (median := float(np.median(np.abs(before)))) > 0:
                return (
                    update,
                    f"{name} showed it first: {value:.3g} at update {update}, where its median had been {median:.3g}",
                )
        return None


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
