"""A sum tree over numpy arrays."""

import numpy as np

RADIX = 32


class SumTree:
    """
    Non-negative numbers with their sums over blocks of blocks, for sampling in proportion to them.

    A node has 32 children rather than 2, so a million leaves are four levels deep and a batch costs four numpy
    passes. A parent is always recomputed from its children: rounding errors do not pile up.

    :param capacity: number of leaves
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._levels = []  # from the leaves up to one block, each padded with zeros to whole blocks
        size = capacity
        while True:
            n_blocks = -(-size // RADIX)
            self._levels.append(np.zeros(n_blocks * RADIX, dtype=np.float64))
            if n_blocks == 1:
                break
            size = n_blocks

    @property
    def total(self) -> float:
        """Sum of all leaves."""
        return float(self._levels[-1].sum())

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return self._levels[0][indices]

    def update(self, indices: np.ndarray, values: np.ndarray | float) -> None:
        """
        Set leaves.

        :param indices: leaves to set, ``[n]``
        :param values: their new values, at least 0, ``[n]`` or one for all
        """
        self._levels[0][indices] = values
        for children, parents in zip(self._levels[:-1], self._levels[1:], strict=True):
            indices = indices // RADIX
            parents[indices] = children.reshape(-1, RADIX)[indices].sum(axis=1)

    def find(self, prefix_sums: np.ndarray) -> np.ndarray:
        """
        For each prefix sum u the leaf i with ``sum(leaves[:i]) <= u < sum(leaves[:i + 1])``.

        With leaves of 0 and 1 and a whole number u this is the u-th leaf that is 1.

        :param prefix_sums: numbers in ``[0, total)``, ``[n]``
        :return: indices of non-zero leaves, ``[n]``
        """
        remaining = np.array(prefix_sums, dtype=np.float64)
        nodes = np.zeros(len(remaining), dtype=np.int64)
        rows = np.arange(len(remaining))
        for level in reversed(self._levels):
            sums = level.reshape(-1, RADIX)[nodes].cumsum(axis=1)
            # Rounding may leave a remainder beyond the last sum: argmax is the last child that holds anything
            children = np.minimum((sums <= remaining[:, None]).sum(axis=1), sums.argmax(axis=1))
            remaining -= np.where(children > 0, sums[rows, children - 1], 0.0)
            nodes = nodes * RADIX + children
        return nodes
