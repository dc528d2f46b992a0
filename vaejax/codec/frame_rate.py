"""The frame rate of a clip, from the times of its frames."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

CLOCK = 1.1e-3  # seconds; what containers' clocks of 1/600 s and 1/1000 s round a time by, and a little
STANDARD = (
    *map(Fraction, (24, 25, 30, 48, 50, 60, 120)),
    *(Fraction(n, 1001) for n in (24000, 30000, 60000)),
)


def of(times: Sequence[float], told: Sequence[Fraction]) -> tuple[Fraction, bool]:
    """Frames a second, and whether frames come at that rate throughout.

    Args:
      times: of every frame, seconds, the first 0.
      told: by the file's header, the likelier first; may be wrong.

    Returns:
      The first rate, of those told, the usual ones and the mean, that no frame's time contradicts, and True;
      else the mean, and False. Of one frame it is the first that is told, or 25.
    """
    told = [Fraction(rate) for rate in told if 0 < rate <= 1000]
    if len(times) < 2:
        return (told or [Fraction(25)])[0], True
    times = np.asarray(times, np.float64)
    period = Fraction(times[-1] / (len(times) - 1))
    mean = (1 / period).limit_denominator(1001) or 1 / period.limit_denominator(1001)
    for rate in (*told, *STANDARD, mean):
        if np.abs(times - np.arange(len(times)) / float(rate)).max() <= min(CLOCK, 0.3 / float(rate)):
            return rate, True
    return mean, False
