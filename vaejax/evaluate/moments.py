"""Mean and covariance of channels, accumulated over batches."""

import numpy as np


class ChannelMoments:
    """Sums over values, from which the mean and the covariance of c channels are computed.

    Memory grows with the number of channels, not with the number of values.

    Attributes:
      count: number of values per channel so far.
    """

    def __init__(self):
        self.count = 0
        self._total: np.ndarray = np.zeros(1)
        self._products: np.ndarray = np.zeros((1, 1))

    def add(self, values: np.ndarray) -> None:
        """Adds values (n, c), which should be float64, because they are summed in their own dtype."""
        self.count += len(values)
        self._total = self._total + values.sum(0)
        self._products = self._products + values.T @ values

    @property
    def mean(self) -> np.ndarray:
        """The mean of each channel, (c,) float64."""
        return self._total / self.count

    @property
    def covariance(self) -> np.ndarray:
        """The covariance of the channels, (c, c) float64, without Bessel's correction."""
        return self._products / self.count - np.outer(self.mean, self.mean)
