"""Estimates the frame rate of a clip from the times of its frames."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

# Tolerance in seconds: containers with clocks of 1/600 s or 1/1000 s round times by less than this.
CLOCK = 1.1e-3
STANDARD = (
    *map(Fraction, (24, 25, 30, 48, 50, 60, 120)),
    *(Fraction(n, 1001) for n in (24000, 30000, 60000)),
)


def estimate(times: Sequence[float], declared: Sequence[Fraction]) -> tuple[Fraction, bool]:
    """Estimates the frame rate, and whether it is constant.

    Args:
      times: times of all frames in seconds; the first is 0.
      declared: frame rates in the file's header, the likeliest first; they may be wrong.

    Returns:
      (rate, True), with the first of the declared, standard and mean rates that agrees with the times of all
      frames. If none does, (mean rate, False). For a single frame, (first declared rate or 25, True).
    """
    declared = [Fraction(rate) for rate in declared if 0 < rate <= 1000]
    if len(times) < 2:
        return (declared or [Fraction(25)])[0], True
    seconds = np.asarray(times, np.float64)
    period = Fraction(seconds[-1] / (len(seconds) - 1))
    mean = (1 / period).limit_denominator(1001) or 1 / period.limit_denominator(1001)
    for rate in (*declared, *STANDARD, mean):
        error = np.abs(seconds - np.arange(len(seconds)) / float(rate)).max()
        if error <= min(CLOCK, 0.3 / float(rate)):
            return rate, True
    return mean, False
