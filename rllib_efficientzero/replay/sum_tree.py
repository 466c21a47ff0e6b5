"""A sum tree over numpy: prefix-sum search and bulk updates in O(log capacity) array operations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


WHOLE_LEVEL = 1024
"""Up to this many nodes, recomputing a whole level of the tree is about as fast as a few scattered nodes."""


class SumTree:
    """Non-negative leaves and the sums over them, as a binary heap in one float64 array.

    Every parent is recomputed from its two children, never adjusted by a difference, so that the sums do not drift
    however often leaves change.

    Example:
        >>> tree = SumTree(4)
        >>> tree.set(np.array([0, 2]), np.array([1.0, 3.0]))
        >>> tree.total
        4.0
        >>> tree.find(np.array([0.5, 1.0, 3.9])).tolist()
        [0, 2, 2]
    """

    def __init__(self, capacity: int) -> None:
        """Args:
        capacity: number of leaves (> 0), all 0 at first.
        """
        if capacity < 1:
            raise ValueError(f"A SumTree needs a capacity of at least 1, got {capacity}.")
        self.capacity = capacity
        self._depth = (capacity - 1).bit_length()
        self._first_leaf = 1 << self._depth
        # Node 1 is the root, node i has the children 2i and 2i + 1, leaf i is node `_first_leaf + i`.
        self._nodes: FloatArray = np.zeros(2 * self._first_leaf)

    @property
    def total(self) -> float:
        """Sum of all leaves."""
        return float(self._nodes[1])

    @property
    def _children(self) -> npt.NDArray[np.complex128]:
        """View of every node's children, left as real and right as imaginary part: NumPy reads both in one look-up."""
        return self._nodes.view(np.complex128)

    def get(self, indices: IntArray) -> FloatArray:
        """Leaf values `[n]` at `indices` `[n]`."""
        return self._nodes[indices + self._first_leaf]

    def set(self, indices: IntArray, values: FloatArray) -> None:
        """Sets the leaves `indices` `[n]` to `values` `[n]` (>= 0). Of duplicate indices the last one wins."""
        if len(indices) == 0:
            return
        if indices.min() < 0 or indices.max() >= self.capacity:
            raise IndexError(f"SumTree indices must lie in [0, {self.capacity}).")
        nodes = indices + self._first_leaf
        self._nodes[nodes] = values
        children_of = self._children
        most = max(WHOLE_LEVEL, 8 * len(nodes))
        for depth in reversed(range(self._depth)):
            if (size := 1 << depth) <= most:
                children = children_of[size : 2 * size]
                np.add(children.real, children.imag, out=self._nodes[size : 2 * size])
            else:
                nodes = nodes >> 1
                children = children_of.take(nodes)
                self._nodes[nodes] = children.real + children.imag

    def find(self, prefix_sums: FloatArray) -> IntArray:
        """Leaves `[n]` in which the cumulative sum over the leaves first exceeds `prefix_sums` `[n]`.

        Args:
            prefix_sums: numbers in [0, total). With uniform ones, leaf i is found with probability leaf_i / total.

        Returns:
            Indices `[n]`. A leaf of value 0 is never returned, whatever the rounding.
        """
        if self.total <= 0:
            raise ValueError("A SumTree whose leaves are all 0 has nothing to find.")
        rest = np.array(prefix_sums, dtype=np.float64)
        nodes = np.ones(len(rest), dtype=np.int64)
        children_of = self._children
        for _ in range(self._depth):
            children = children_of.take(nodes)
            # `rest` may exceed the sums below by a rounding error; an empty right half must not attract it.
            goes_right = (rest >= children.real) & (children.imag > 0)
            rest -= children.real * goes_right
            nodes += nodes
            nodes += goes_right
        return nodes - self._first_leaf
