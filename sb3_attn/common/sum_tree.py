"""A sum tree in numpy arrays."""

from typing import Any

import numpy as np

#: Number of children of a node
RADIX = 32


class SumTree:
    """
    Non-negative numbers (leaves) with the sums of blocks of 32, of blocks of such blocks, and so on.

    For sampling in proportion to the leaves, and for their largest. A node has 32 children rather than 2, so a million leaves
    need four levels, and a batch four passes in numpy. A parent is always recomputed from its children, so that rounding
    errors do not accumulate.

    :param capacity: number of leaves
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._levels = []  # from the leaves up to a single block of sums, each padded with zeros to whole blocks
        size = capacity
        while True:
            n_blocks = -(-size // RADIX)  # rounded up
            self._levels.append(np.zeros(n_blocks * RADIX, dtype=np.float64))
            if n_blocks == 1:
                break
            size = n_blocks
        # One level of maxima is enough: a million leaves have 31,000 blocks
        self._block_maxima = np.zeros(len(self._levels[0]) // RADIX)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Pickles of earlier versions have none
        self._block_maxima = self._levels[0].reshape(-1, RADIX).max(axis=1)

    @property
    def nbytes(self) -> int:
        """Size of all arrays."""
        return sum(level.nbytes for level in self._levels) + self._block_maxima.nbytes

    @property
    def total(self) -> float:
        """Sum of all leaves."""
        return float(self._levels[-1].sum())

    @property
    def largest(self) -> float:
        """The largest leaf."""
        return float(self._block_maxima.max())

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return self._levels[0][indices]

    def update(self, indices: np.ndarray, values: np.ndarray | float) -> None:
        """
        Set leaves.

        :param indices: indices of the leaves, ``[n]``
        :param values: their new values, at least 0, ``[n]`` or one for all
        """
        self._levels[0][indices] = values
        blocks = indices // RADIX
        self._block_maxima[blocks] = self._levels[0].reshape(-1, RADIX)[blocks].max(axis=1)
        # Upwards, the sums of the blocks that changed; several leaves may share a block, whose sum is then written twice
        for children, parents in zip(self._levels[:-1], self._levels[1:], strict=True):
            indices = indices // RADIX
            parents[indices] = children.reshape(-1, RADIX)[indices].sum(axis=1)

    def find(self, prefix_sums: np.ndarray) -> np.ndarray:
        """
        Find for each prefix sum u the leaf i with ``sum(leaves[:i]) <= u < sum(leaves[:i + 1])``.

        If all leaves are 0 or 1 and u is a whole number, this is leaf number u (from 0) among those that are 1.

        :param prefix_sums: numbers in ``[0, total)``, ``[n]``
        :return: indices of non-zero leaves, ``[n]``
        """
        # Downwards: in the block of each node, find the child in whose share of the sum the remainder falls, and go on there
        # with the remainder less the sums of the children before it
        remaining = np.array(prefix_sums, dtype=np.float64)
        nodes = np.zeros(len(remaining), dtype=np.int64)
        rows = np.arange(len(remaining))
        for level in reversed(self._levels):
            sums = level.reshape(-1, RADIX)[nodes].cumsum(axis=1)
            # Rounding may leave a remainder that is not below the last sum. argmax, the first child at which the sums reach
            # their maximum, is the last child that is not 0.
            children = np.minimum((sums <= remaining[:, None]).sum(axis=1), sums.argmax(axis=1))
            remaining -= np.where(children > 0, sums[rows, children - 1], 0.0)
            nodes = nodes * RADIX + children
        return nodes
