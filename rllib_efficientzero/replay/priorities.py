"""The priorities of a ring of slots, and drawing slots by them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rllib_efficientzero.replay.sum_tree import SumTree

MIN_PRIORITY = 1e-8
"""Smaller priorities count as this, so that no slot becomes unreachable for ever."""


class Priorities:
    """Priorities of slots, 0 until they are set. A slot is drawn with probability ~ priority^alpha.

    Example:
        >>> priorities = Priorities(4, exponent=1.0)
        >>> priorities.set(np.array([0, 2]), np.array([3.0, 1.0]))
        >>> priorities.probabilities(np.array([0, 1, 2]))
        array([0.75, 0.  , 0.25])
    """

    def __init__(self, num_slots: int, *, exponent: float) -> None:
        """Args:
        num_slots: slots.
        exponent: alpha.
        """
        # Zeros cost no memory until they are written.
        self._values = np.zeros(num_slots)
        self._exponent = exponent
        self._tree = SumTree(num_slots)

    def set(self, slots: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> None:
        """Sets `values` `[n]`, finite and >= 0, of `slots` `[n]`; of duplicates the last one wins."""
        self._values[slots] = np.maximum(values, MIN_PRIORITY)
        self._tree.set(slots, self._values[slots] ** self._exponent)

    def get(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Priorities `[n]` of `slots` `[n]`."""
        return self._values[slots]

    def first(self, count: int) -> npt.NDArray[np.float64]:
        """Priorities `[count]` of the first slots, as a view."""
        return self._values[:count]

    def probabilities(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Probability `[n]` of each of `slots` `[n]` to be drawn first."""
        return self._tree.get(slots) / self._tree.total

    def draw(self, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Draws `count` different slots `[count]`; at least `count` slots must have been set.

        If draws coincide, it draws the missing ones from the remaining slots. This has the same distribution as drawing
        again until a new slot comes, but ends soon however unequal the priorities are.
        """
        drawn = np.empty(0, np.int64)
        drawn_values = np.empty(0)
        try:
            while True:
                prefix_sums = rng.random(count - len(drawn)) * self._tree.total
                found = self._tree.find(prefix_sums)
                _, first_occurrences = np.unique(found, return_index=True)
                found = found[np.sort(first_occurrences)]
                if len(drawn) + len(found) == count:
                    return np.append(drawn, found)
                drawn_values = np.append(drawn_values, self._tree.get(found))
                drawn = np.append(drawn, found)
                self._tree.set(found, np.zeros(len(found)))
        finally:
            self._tree.set(drawn, drawn_values)
