"""A set of rows of a table that takes one bit a row, so that every worker process can have a copy."""

import numpy as np

_BLOCK = 4096  # rows; a look-up searches one block


class RowSet:
    """The numbers of some rows in increasing order; `rows[i]` finds the i-th.

    Args:
      chosen: whether each row of the table is in the set, bool (n,).
    """

    def __init__(self, chosen: np.ndarray):
        self._bits = np.packbits(chosen)
        starts = np.arange(0, len(self._bits), _BLOCK // 8)
        ones = np.bitwise_count(self._bits).astype(np.int64)
        in_blocks = np.add.reduceat(ones, starts) if len(starts) else ones
        self._before = np.concatenate([[0], np.cumsum(in_blocks)])  # members before each block, and of all

    def __len__(self) -> int:
        return int(self._before[-1])

    def __getitem__(self, index: int) -> int:
        block = int(np.searchsorted(self._before, index, side="right")) - 1
        bits = self._bits[block * _BLOCK // 8 : (block + 1) * _BLOCK // 8]
        return block * _BLOCK + int(np.flatnonzero(np.unpackbits(bits))[index - self._before[block]])
